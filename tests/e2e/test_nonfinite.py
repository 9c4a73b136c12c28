"""A domain whose loss is NaN is named, whether Megatron stops for it or goes on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from support.launch import Run, train

pytestmark = pytest.mark.megatron

NAMED = "loss is not finite in domain general"


def poisoned(
    folder: Path, *flags: str | Path, poison: str, env: dict[str, str] | None = None, **how: Any
) -> Run:
    given = {"POISON": poison, **(env or {})}
    return train(folder, *flags, script="poisoned_gpt.py", env=given, **how)


def test_rerun_machine_stops_the_run(blend: list[str], tmp_path: Path) -> None:
    """By default Megatron repeats the step, saves the checkpoint before it, and exits with 16."""
    save = ["--save", tmp_path / "checkpoint", "--save-interval", "100"]
    run = poisoned(tmp_path, *blend, *save, poison="training", expect=16)
    assert run.output.count(NAMED) == 1
    assert [entry["iteration"] for entry in run.metrics()] == [1]


@pytest.mark.parametrize("env", [{}, {"FUSED": "1", "VALUE": "inf"}], ids=["host", "kernel"])
def test_nan_check_raises(blend: list[str], tmp_path: Path, env: dict[str, str]) -> None:
    """Also of a kernel's sums, which are NaN where a token is infinite."""
    disabled = ["--rerun-mode", "disabled"]
    run = poisoned(tmp_path, *blend, *disabled, poison="training", env=env, expect=1)
    assert "found NaN in local forward loss" in run.output
    assert run.output.count(NAMED) == 1
    assert [entry["iteration"] for entry in run.metrics()] == [1]


def test_nan_check_raises_in_an_evaluation(blend: list[str], tmp_path: Path) -> None:
    run = poisoned(tmp_path, *blend, "--eval-interval", "1", poison="evaluation", expect=1)
    assert "found NaN in local forward loss" in run.output
    assert run.output.count(NAMED) == 1


def test_training_goes_on(blend: list[str], tmp_path: Path) -> None:
    """Without Megatron's check: console and metrics file name the domain, and no other."""
    flags = ["--no-check-for-nan-in-loss-and-grad", "--eval-interval", "4"]
    run = poisoned(tmp_path, *blend, *flags, poison="both")
    clean, *bad, evaluation = [*run.metrics(), run.metrics("valid")[0]]
    assert "nonfinite" not in str(clean)
    assert len(bad) == 3
    for entry in [*bad, evaluation]:
        domains = entry["domains"]
        general = domains.pop("general")
        assert general["loss"] is None
        assert general["nonfinite"] > 0
        assert domains
        for domain in domains.values():
            assert "nonfinite" not in domain
            assert math.isfinite(domain["loss"])
        warning = f"NaN or infinite loss ({entry['split']}, iteration {entry['iteration']})"
        told = f"{warning} in domain general ({general['nonfinite']:,} tokens); likely cause: data"
        assert (told in run.output) == (entry in (bad[0], evaluation)), "once, until it is over"
