"""What the model read of one domain, last: the documents, by a trace of one iteration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from domain_pretrain.records.reader import read_metrics

CHARACTERS = 60


def last_iteration(folder: Path, domain: str) -> tuple[int, list[dict[str, Any]]] | None:
    """The last iteration of a run that read of a domain, and its samples of it.

    Args:
        folder: of the run.
        domain: by name.

    Returns:
        The iteration and one object a sample, as ``trace --json --text`` prints them; None where
        no logged window has any, or the run cannot be traced: that a trace says on its own.
    """
    before, windows = 0, []
    for entry in read_metrics(folder):
        if entry["split"] == "train":
            windows.append((before + 1, entry["iteration"], domain in entry["domains"]))
            before = entry["iteration"]
    found = [(first, last) for first, last, present in windows if present]
    if not found:
        return None
    first, last = found[-1]
    command = [sys.executable, "-m", "domain_pretrain.commands", "trace", str(folder)]
    command += ["--iteration", f"{first}:{last + 1}", "--domain", domain]
    command += ["--text", str(CHARACTERS), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=False)
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or not samples:
        return None
    iteration = samples[-1]["iteration"]
    return iteration, [sample for sample in samples if sample["iteration"] == iteration]
