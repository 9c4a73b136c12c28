"""A fact planted in one domain's data shows in its probe, while real Megatron trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.megatron

RUN = Path(__file__).parents[2] / "benchmarks" / "probes" / "run.py"


def test_a_planted_fact_shows_and_a_control_does_not(tmp_path: Path) -> None:
    """By the benchmark, with one of its seeds and half of its steps."""
    out = tmp_path / "out.json"
    command = [sys.executable, RUN, "--seeds", "1", "--steps", "200", "--out", out]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = json.loads(out.read_text(encoding="utf-8"))["runs"]
    planted, control = (run["scores"][f"completion of {kind}"] for kind in ("planted", "control"))
    # A guess costs 1.54 nats a token; seen: 0.83, and -0.04 for the control.
    assert planted["change"] > 0.4
    assert planted["change"] > 4 * control["change"]
