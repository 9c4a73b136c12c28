"""Runs that are compared with one another: what Megatron printed, saved and called."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.launch import Run, train

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
        found: dict[str, Any] = {}
        for file in sorted(self.folder.glob("checkpoint/iter_*/**/*.pt")):
            content = torch.load(file, weights_only=False)
            del content["args"]
            content["opt_param_scheduler"].pop("domain_pretrain", None)
            found.update(leaves(content, file.parent.name))
        return found

    def steps(self) -> list[list[Counter[str]]]:
        """For every rank, the calls counted in each step, and then those after the last one."""
        files = sorted(self.folder.glob("rank*.json"))
        return [[Counter(step) for step in json.loads(file.read_text())] for file in files]


def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Path and value of everything in nested dicts and lists."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}")
    else:
        yield path, value


def observe(folder: Path, *flags: str | Path, nproc: int, env: Any = None, **how: Any) -> Observed:
    """Train watched_gpt.py for :data:`STEPS` steps and save a checkpoint, all below ``folder``."""
    save = ["--save", folder / "checkpoint", "--save-interval", "100", "--ckpt-format", "torch"]
    env = {"RECORD_DIR": str(folder), **(env or {})}
    script = "watched_gpt.py"
    folder.mkdir(exist_ok=True)
    run = train(folder, *flags, *save, nproc=nproc, iterations=STEPS, script=script, env=env, **how)
    return Observed(run, folder)


def assert_same_training(got: Observed, expected: Observed) -> None:
    """All that was printed and saved, bit for bit."""
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


def assert_collectives(got: Observed, expected: Observed, more: list[dict[str, int]]) -> None:
    """Each rank calls exactly ``more`` in each step. The first step is left out: there the plugin
    finds out, once, which rank counts."""
    assert len(got.steps()) == len(expected.steps()) == len(more)
    for have, want, difference in zip(got.steps(), expected.steps(), more, strict=True):
        for step in range(1, STEPS):
            assert have[step] == want[step] + Counter(difference)
