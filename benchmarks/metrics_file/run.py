#!/usr/bin/env python3
"""How large the metrics file is, and what ``report`` takes of time and memory to read it.

    python benchmarks/metrics_file/run.py                                    # bytes of a line
    python benchmarks/metrics_file/run.py --domains 1000 --lines 10000       # and a whole file

The lines are written by the plugin's own writer. A window has 4 million tokens, losses have noise,
and every tenth domain is absent from a line.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from domain_pretrain.records.metrics_file import MetricsFile, metrics_entry
from domain_pretrain.records.reader import METRICS_FILE
from domain_pretrain.records.record import Record
from domain_pretrain.stats import SCALE, Column, DomainStats

WINDOW = 4_000_000  # tokens
SIZES = (1, 3, 50, 1000)


def record(iteration: int, names: tuple[str, ...], dice: np.random.Generator) -> Record:
    """A window of training with reweighting, after ``iteration`` windows."""
    losses = 2 + 3 / (1 + iteration / 100) + dice.normal(0, 0.05, len(names))
    tokens = dice.poisson(WINDOW / len(names), len(names))
    if len(names) >= 10:
        tokens[iteration % 10 :: 10] = 0
    sums = np.zeros((len(names) + 1, len(Column)), dtype=np.int64)
    sums[:-1, Column.LOSS] = losses * tokens * SCALE[Column.LOSS]
    sums[:-1, Column.TOKENS] = tokens * SCALE[Column.TOKENS]
    sums[:-1, Column.SAMPLES] = tokens // 4096 + 1
    consumed = {name: float(iteration * WINDOW // len(names)) for name in names}
    samples = {name: iteration * 1000 for name in names}
    numbers = {"learning_rate": 1e-4, "grad_norm": float(dice.gamma(4, 0.2)), "seconds": 12.3}
    stats = DomainStats(names, sums)
    return Record("train", iteration, iteration * 1000, stats, consumed, samples, host=numbers)


def write(folder: Path, domains: int, lines: int) -> None:
    """A metrics file of a run."""
    names, dice = tuple(f"domain-{place:04}" for place in range(domains)), np.random.default_rng(0)
    file = MetricsFile(folder, "token", after_iteration=0, corpus_tokens={})
    for iteration in range(1, lines + 1):
        file.line(record(iteration, names, dice))
    file.close()


def line_bytes(domains: int) -> tuple[float, float]:
    """Mean bytes of a line with a name and a key for each number, and of one as it is written."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), domains, 20)
        _, *lines = (Path(folder) / METRICS_FILE).read_bytes().splitlines(keepends=True)
    names, dice = tuple(f"domain-{place:04}" for place in range(domains)), np.random.default_rng(0)
    wide = [metrics_entry(record(i, names, dice), "token") for i in range(1, 21)]
    sizes = [len(json.dumps(entry)) + 1 for entry in wide]
    return sum(sizes) / len(sizes), sum(map(len, lines)) / len(lines)


def report(folder: Path) -> tuple[float, float]:
    """Seconds and greatest resident memory (MB) of ``report`` with a picture."""
    command = [sys.executable, "-m", "domain_pretrain.commands", "report", str(folder)]
    started = time.monotonic()
    command += ["--png", str(folder / "losses.png")]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    return seconds, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=0, help="of the whole file; 0: none")
    options = parser.parse_args(arguments)
    print(f"{platform.machine()}, Python {platform.python_version()}\n")
    print("| domains | bytes of a line, by name | as written |\n|---|---|---|")
    for domains in SIZES:
        wide, written = line_bytes(domains)
        print(f"| {domains:,} | {wide:,.0f} | {written:,.0f} |")
    if options.lines:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), options.domains, options.lines)
            size = (Path(folder) / METRICS_FILE).stat().st_size
            seconds, memory = report(Path(folder))
        print(f"\n{options.domains:,} domains, {options.lines:,} lines: {size / 1e6:,.0f} MB; ")
        print(f"report with a picture: {seconds:.0f} s, {memory:,.0f} MB of memory at most")


if __name__ == "__main__":
    main()
