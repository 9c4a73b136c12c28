"""MindSpeed as a host: what of it is checked without it, and what is refused."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.made_up import write_host

from domain_pretrain.commands.main import main
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.hosts import install, mindspeed
from domain_pretrain.hosts.mindspeed_support import REFUSALS
from domain_pretrain.hosts.support import check_flags

DOCS = Path(__file__).parents[2] / "docs" / "mindspeed.md"

PLAIN = {"tensor_model_parallel_size": 1, "context_parallel_size": 1}
REFUSED: dict[str, dict[str, Any]] = {
    "--stage": {"stage": "sft"},
    "--is-instruction-dataset": {"is_instruction_dataset": True},
    "--is-pairwise-dataset": {"is_pairwise_dataset": True},
    "--schedules-method dualpipev": {"schedules_method": "dualpipev"},
    "--layerwise-disaggregated-training": {"layerwise_disaggregated_training": True},
    "--loss-compute-mode chunk": {"loss_compute_mode": "chunk"},
    "--enable-high-availability": {"enable_high_availability": True},
    "--auto-settings": {"auto_settings": True},
    "--ai-framework mindspore": {"ai_framework": "mindspore"},
}


def test_every_refusal_applies_to_its_flags_alone() -> None:
    assert len(REFUSED) == len(REFUSALS)
    check_flags(SimpleNamespace(**PLAIN), REFUSALS)
    check_flags(SimpleNamespace(**PLAIN, ai_framework="pytorch", stage=None), REFUSALS)
    for (flags, args), refusal in zip(REFUSED.items(), REFUSALS, strict=True):
        assert refusal.flags.startswith(flags)
        assert refusal.applies(SimpleNamespace(**PLAIN, **args))
        others = {k: v for values in REFUSED.values() if values != args for k, v in values.items()}
        assert not refusal.applies(SimpleNamespace(**PLAIN, **others))
    parallel = SimpleNamespace(**{**PLAIN, "context_parallel_size": 2}, loss_compute_mode="chunk")
    check_flags(parallel, REFUSALS)


def test_the_page_lists_every_refusal() -> None:
    page = " ".join(DOCS.read_text(encoding="utf-8").replace("`", "").split())
    for refusal in REFUSALS:
        assert f"| {refusal.flags} | {refusal.why} |" in page


LOOP = """
from megatron.training.training import (
    train_step, evaluate_and_print_results
)
def train(*args): train_step(*args)
"""
MANAGER = """
class MindSpeedFeaturesManager:
    @classmethod
    def apply_features_patches(cls, mindspeed_args): ...
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A made-up MindSpeed-LLM checkout that holds MindSpeed and Megatron, too."""
    write_host(tmp_path, mindspeed.SEAMS, "0.12.1")
    sources = {
        "mindspeed_llm/__init__.py": "",
        "mindspeed_llm/training/__init__.py": "",
        "mindspeed_llm/training/training.py": LOOP,
        "mindspeed/__init__.py": "",
        "mindspeed/features_manager/features_manager.py": MANAGER,
    }
    for name, text in sources.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("MINDSPEED_PATH", str(tmp_path))
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "mindspeed_llm"]:
        del sys.modules[name]


def test_doctor_on_a_checkout_that_fits(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--host", str(checkout)]) == 0
    out = capsys.readouterr().out
    assert "mindspeed_llm.training.training" in out
    assert "megatron.core.pipeline_parallel.schedules:get_forward_backward_func" in out
    assert "--schedules-method dualpipev" in out


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("mindspeed_llm/training/training.py", "    train_step,", "", "does not import train_step"),
        ("mindspeed_llm/training/training.py", "megatron.training.training", "a", "evaluate_and"),
        ("mindspeed/features_manager/features_manager.py", "mindspeed_args", "x", "mindspeed_args"),
        ("megatron/core/pipeline_parallel/schedules.py", "forward_backward", "x", "get_forward_"),
    ],
)
def test_doctor_on_one_that_does_not(
    checkout: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, said: str
) -> None:
    path = checkout / file
    path.write_text(path.read_text().replace(old, new))
    assert main(["doctor", "--host", str(checkout)]) == 1
    assert said in capsys.readouterr().out


def test_doctor_without_mindspeed(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINDSPEED_PATH", str(checkout / "megatron"))
    assert main(["doctor", "--host", str(checkout)]) == 1
    assert "no package mindspeed" in capsys.readouterr().out


def test_doctor_finds_megatron_elsewhere(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "elsewhere").mkdir()
    (checkout / "megatron").rename(checkout / "elsewhere" / "megatron")
    monkeypatch.setenv("MEGATRON_LM_PATH", str(checkout / "nowhere"))
    assert main(["doctor", "--host", str(checkout)]) == 1
    monkeypatch.setenv("MEGATRON_LM_PATH", str(checkout / "elsewhere"))
    assert main(["doctor", "--host", str(checkout)]) == 0


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_enabled", True)
    monkeypatch.setattr(sys, "argv", ["train.py", "--channel-loss"])


def imported(name: str, text: str, checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(checkout)
    path = checkout.joinpath(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return importlib.import_module(name)


def test_a_loop_that_goes_past_the_seams_stops_the_run(
    checkout: Path, enabled: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = imported(mindspeed.LOOP, "def train_step(): ...\n", checkout, monkeypatch)
    with pytest.raises(SystemExit):
        install._check_loop(module)
    assert "does not import train_step, evaluate_and_print_results" in capsys.readouterr().err


def test_a_loop_without_megatron_stops_the_run(
    checkout: Path, enabled: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    module = imported(mindspeed.FSDP2, "", checkout, monkeypatch)
    with pytest.raises(SystemExit):
        install._refuse(module)
    assert "a training loop without Megatron" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["train.py"])
    install._refuse(module)  # nobody asked for channel loss


def test_refusals_name_the_flags() -> None:
    with pytest.raises(UnsupportedError, match=re.escape("--stage is not supported")):
        check_flags(SimpleNamespace(**PLAIN, stage="dpo"), REFUSALS)
