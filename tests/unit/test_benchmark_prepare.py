"""The benchmark of ``prepare`` runs beside a checkout, and says what is missing without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "prepare" / "run.py"


def run(*words: str, checkout: str) -> str:
    environment = {**os.environ, "MEGATRON_LM_PATH": checkout}
    command = [sys.executable, RUN, *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("checkout", ["", "nowhere"])
def test_without_a_checkout_it_says_so(checkout: str) -> None:
    said = run(checkout=checkout)
    assert said.startswith("skipped: ") and "set MEGATRON_LM_PATH" in said


@pytest.mark.checkout
def test_both_write_the_same_and_are_timed(tmp_path: Path) -> None:
    checkout = os.environ.get("MEGATRON_LM_PATH")
    if not checkout:
        pytest.skip("MEGATRON_LM_PATH names no checkout")
    for name in ("tokenizers", "transformers"):
        pytest.importorskip(name)
    out = tmp_path / "out.json"
    words = ["--megabytes", "1", "--turns", "1", "--workers", "1", "--out", str(out)]
    said = run(*words, checkout=checkout)
    assert "**prepare / megatron, time**" in said
    (found,) = json.loads(out.read_text("utf-8"))["results"]
    assert found["ratio"]["wall"] > 0 and found["ratio"]["cpu"] > 0
    assert out.with_suffix(".md").read_text("utf-8").startswith("| workers |")
