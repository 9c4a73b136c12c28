"""With the plugin, the host computes what it computes alone, and pays one all-reduce a step."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import CPU_FLAGS, Run, train

pytestmark = pytest.mark.megatron

# Dropout, so that a random number too many would show; evaluation, which must leave no trace.
SINGLE = shlex.split("--attention-dropout 0.1 --hidden-dropout 0.1 --eval-interval 2")
PARALLEL = shlex.split("--bf16 --eval-iters 0 --split 100,0,0")
TP2 = [*PARALLEL, *shlex.split("--tensor-model-parallel-size 2 --global-batch-size 4")]
STEPS = 4


@dataclass(frozen=True)
class Observed:
    """What can be compared of a run."""

    run: Run
    folder: Path

    def printed(self) -> list[Any]:
        """Every loss, gradient norm and evaluation that Megatron printed."""
        return [self.run.host_losses(), self.run.host_grad_norms(), self.run.host_evaluations()]

    def checkpoint(self) -> dict[str, Any]:
        """Everything in the final checkpoint, by path, but for the arguments."""
        leaves: dict[str, Any] = {}
        for file in sorted(self.folder.glob("checkpoint/iter_*/**/*.pt")):
            content = torch.load(file, weights_only=False)
            del content["args"]
            content["opt_param_scheduler"].pop("domain_pretrain", None)
            leaves.update(_leaves(content, file.parent.name))
        return leaves

    def steps(self) -> list[list[Counter[str]]]:
        """For every rank, the calls counted in each step, and then those after the last one."""
        files = sorted(self.folder.glob("rank*.json"))
        return [[Counter(step) for step in json.loads(file.read_text())] for file in files]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    else:
        yield path, value


def observe(folder: Path, *flags: str | Path, nproc: int, env: Any = None, **how: Any) -> Observed:
    save = ["--save", folder / "checkpoint", "--save-interval", "100", "--ckpt-format", "torch"]
    env = {"RECORD_DIR": str(folder), **(env or {})}
    script = "watched_gpt.py"
    folder.mkdir(exist_ok=True)
    run = train(folder, *flags, *save, nproc=nproc, iterations=STEPS, script=script, env=env, **how)
    return Observed(run, folder)


def assert_same_training(got: Observed, expected: Observed) -> None:
    assert len(expected.run.host_losses()) == len(expected.run.host_grad_norms()) == STEPS
    assert got.printed() == expected.printed()
    assert_same_checkpoint(got, expected)


def assert_same_checkpoint(got: Observed, expected: Observed, leave_out: str | None = None) -> None:
    """All but the paths with ``leave_out`` in them."""
    want, have = expected.checkpoint(), got.checkpoint()
    assert any("exp_avg" in path for path in want), "the optimizer's state is compared too"
    assert have.keys() == want.keys()
    different = [
        path
        for path, value in want.items()
        if not (leave_out and leave_out in path)
        and not (
            torch.equal(value, have[path])
            if isinstance(value, torch.Tensor)
            else str(value) == str(have[path])
        )
    ]
    assert not different


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, blend: list[str]) -> Observed:
    """The host without the plugin, one process."""
    folder = tmp_path_factory.mktemp("alone")
    return observe(folder, *blend, *SINGLE, nproc=1, plugin=False, installed=False)


def test_channel_loss(alone: Observed, blend: list[str], tmp_path: Path) -> None:
    with_plugin = observe(tmp_path, *blend, *SINGLE, nproc=1)
    assert len(with_plugin.run.metrics()) == STEPS
    assert_same_training(with_plugin, alone)
    # No forward pass more; and in a process of its own there is nobody to talk to.
    assert alone.steps()[0][1]["forward"] == 8
    assert alone.steps()[0][2]["eval_forward"] == 16, "evaluation after step 2, counted by step 3"
    assert with_plugin.steps() == alone.steps()


def test_installed_but_not_asked_for(alone: Observed, blend: list[str], tmp_path: Path) -> None:
    idle = observe(tmp_path, *blend, *SINGLE, nproc=1, plugin=False)
    assert_same_training(idle, alone)
    assert not list(tmp_path.glob("domain_metrics*"))


def test_disabled(alone: Observed, blend: list[str], tmp_path: Path) -> None:
    """With the seams taken out again, nobody supplies the flags that the CPU needs."""
    flags = [*blend, *SINGLE, *CPU_FLAGS]
    disabled = observe(tmp_path, *flags, nproc=1, plugin=False, env={"DISABLE": "1"})
    assert "CPU backend" not in disabled.run.output
    assert_same_training(disabled, alone)


def test_layout(blend: list[str], tmp_path: Path) -> None:
    """TP2 × DP2 in bf16: TP rank 0 of each data-parallel rank counts, and tells the others."""
    how = {"nproc": 4, "plugin": False, "installed": False}
    host = observe(tmp_path / "alone", *blend, *TP2, **how)
    with_plugin = observe(tmp_path / "plugin", *blend, *TP2, nproc=4)
    assert_same_training(with_plugin, host)
    assert host.steps()[0][1]["forward"] == 2
    more = [{"all_reduce": 1, "broadcast": 1}, {"broadcast": 1}]
    assert_collectives(with_plugin, host, more * 2)


def test_a_thousand_domains(blend: list[str], corpora: Path, tmp_path: Path) -> None:
    """Neither the number of domains nor that of microbatches costs a further collective."""
    how = {"nproc": 2, "plugin": False, "installed": False}
    batch = ["--global-batch-size", "16"]
    host = observe(tmp_path / "alone", *blend, *PARALLEL, *batch, **how)
    for number in range(1000):
        for suffix in (".bin", ".idx"):
            (tmp_path / f"d{number:03}{suffix}").symlink_to(corpora / f"code{suffix}")
    data = ["--data-path", *(tmp_path / f"d{number:03}" for number in range(1000))]
    many = observe(tmp_path / "plugin", *data, *PARALLEL, *batch, nproc=2)
    assert many.steps()[0][1]["forward"] == 8
    assert_collectives(many, host, [{"all_reduce": 1}] * 2)
    entry = many.run.metrics()[-1]
    assert len(entry["domains"]) == 16  # equal weights: a sample from each domain in turn
    assert {domain["tokens"] for domain in entry["domains"].values()} == {32}


def assert_collectives(got: Observed, expected: Observed, more: list[dict[str, int]]) -> None:
    """Each rank calls exactly ``more`` in each step. The first step is left out: there the plugin
    finds out, once, which rank counts."""
    assert len(got.steps()) == len(expected.steps()) == len(more)
    for have, want, difference in zip(got.steps(), expected.steps(), more, strict=True):
        for step in range(1, STEPS):
            assert have[step] == want[step] + Counter(difference)
