"""Where the numbers of a benchmark come from."""

from __future__ import annotations

import platform
import sys
from datetime import date
from pathlib import Path

import torch
from written import ROOT, commit


def provenance(script: str) -> dict[str, str]:
    """The command, the commit, and the machine's software and processor.

    Args:
        script: ``__file__`` of the benchmark.
    """
    return {
        "command": " ".join(
            ["python", str(Path(script).resolve().relative_to(ROOT)), *sys.argv[1:]]
        ),
        "commit": commit(),
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": processor(),
    }


def processor() -> str:
    """Its name, and how many of them there are."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
