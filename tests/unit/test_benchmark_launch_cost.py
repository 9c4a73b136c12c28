"""The benchmark of what a launch costs the host runs; what it finds is not a test's business."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parents[2] / "benchmarks" / "launch_cost" / "run.py"


def test_every_part_is_timed(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="no cuda-bindings, which CUDA builds of torch need")
    pytest.importorskip("megatron.training.argument_utils", reason="this Megatron needs no entry")
    if shutil.which("gcc") is None:
        pytest.skip("no gcc to compile the driver that does nothing")
    out = tmp_path / "out.json"
    command = [sys.executable, RUN, "--turns", "1", "--out", out]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    found = json.loads(out.read_text())
    assert len(found["us"]) == 14 and all(time > 0 for time in found["us"].values())
    assert len(found["parts_us"]) == 16 and all(time > 0 for time in found["parts_us"].values())
    assert found["commit"] and found["processor"]
    assert "| torch operation |" in result.stdout
