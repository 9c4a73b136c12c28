"""The flags that the CPU backend supplies, and the device mode."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, BooleanOptionalAction
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from domain_pretrain.backends import cpu, select
from domain_pretrain.backends.cpu_seams import SEAMS
from domain_pretrain.backends.torch_cuda import OnCpu
from domain_pretrain.errors import ConfigError, UnsupportedError
from domain_pretrain.seams.seam import Seam, check


def parser() -> ArgumentParser:
    """Flags of every kind that Megatron declares, and not all that the backend knows."""
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("--distributed-backend", default="nccl", choices=["nccl", "gloo"])
    parser.add_argument("--use-cpu-initialization", action=BooleanOptionalAction, default=None)
    parser.add_argument("--no-rope-fusion", action="store_false", dest="apply_rope_fusion")
    parser.add_argument("--num-workers", type=int, default=2)
    return parser


def test_supplied_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py"])
    megatron = parser()
    supplied = cpu.add_default_flags(megatron)
    assert vars(megatron.parse_args([])) == {
        "distributed_backend": "gloo",
        "use_cpu_initialization": True,
        "apply_rope_fusion": False,
        "num_workers": 0,
    }
    assert cpu.describe(supplied).endswith(
        "--distributed-backend gloo --use-cpu-initialization --no-rope-fusion --num-workers 0"
    )


def test_the_users_flags_win(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--num-workers=3", "--no-use-cpu-initialization", "--distributed-backend", "nccl"]
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    megatron = parser()
    assert cpu.add_default_flags(megatron) == {"--no-rope-fusion": ""}
    args = megatron.parse_args(words)
    assert (args.num_workers, args.use_cpu_initialization) == (3, False)
    assert args.distributed_backend == "nccl"


def test_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_installed", False)
    monkeypatch.setitem(sys.modules, "megatron.core", sys)
    with pytest.raises(UnsupportedError, match=r"before megatron\.core is imported"):
        cpu.install()


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.name)
def test_every_target_is_there(seam: Seam) -> None:
    spec = find_spec(seam.module.split(".")[0])
    if spec is None:
        pytest.skip("no megatron")
    (folder, *_) = spec.submodule_search_locations or ()
    assert check(seam, Path(folder)) is None
    if "megatron" in seam.module and not seam.absent:
        # Also where the installed one happens to have it: only the training loop may be missing.
        assert seam.module.startswith("megatron.core.")


def test_names_and_targets_are_unique() -> None:
    for values in ([seam.name for seam in SEAMS], [seam.target for seam in SEAMS]):
        assert len(set(values)) == len(values)


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="'gpu': choose one of auto, cpu, cuda, npu"):
        select("gpu")


def test_device_mode() -> None:
    with OnCpu():
        made = torch.zeros(2, device="cuda", pin_memory=True)
        for tensor in (
            made,
            torch.ones(1, device=0),
            made.new_empty(3, device=torch.device("cuda", 0)),
            made.to("cuda:0", non_blocking=True),
            made.to(0, torch.int64),
            made.cuda(non_blocking=True),
        ):
            assert tensor.device.type == "cpu"
        assert made.to(0, torch.int64).dtype == torch.int64
        assert made.pin_memory() is made
        assert torch.ones(1, device="meta").device.type == "meta"
        assert made.half().type() == "torch.cuda.HalfTensor"
        assert made.type(torch.float64).dtype == torch.float64
