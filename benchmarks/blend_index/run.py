#!/usr/bin/env python3
"""What the order of a run's samples costs: a schedule of three stages beside the host's own blend.

    python benchmarks/blend_index/run.py
    python benchmarks/blend_index/run.py --samples 1000000 --prefixes 3 1000

Each measurement is a process of its own, the host's and ours in turn. The host lays out its index
of the whole run with `build_blending_indices`, compiled. A schedule has none: ``ready`` is the time
until a first sample can be found, and ``all`` the time to lay out every chunk besides, as all
workers of a data-parallel rank do together over the whole run. Memory is what a process holds at
most beyond what it held before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import median

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from written import commit

from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.plan import Plan, Stage

SIZES = (10, 200)  # prefixes


def weights(prefixes: int, seed: int) -> tuple[float, ...]:
    """As of real blends: a few large, many small."""
    return tuple((np.random.default_rng(seed).pareto(1.2, prefixes) + 0.02).tolist())


def of_the_host(prefixes: int, samples: int) -> dict[str, float]:
    """The index of one blend, by the host's compiled helper."""
    from domain_pretrain.hosts.stream import build_blending_indices

    shares = np.array(weights(prefixes, 0))
    build_blending_indices([1.0], 1)  # what is imported is not counted
    before = _peak()
    start = time.perf_counter()
    index = build_blending_indices((shares / shares.sum()).tolist(), samples)
    seconds = time.perf_counter() - start
    assert len(index[0]) == samples
    return {"ready": seconds, "all": seconds, "megabytes": _peak() - before}


def of_a_schedule(prefixes: int, samples: int) -> dict[str, float]:
    """Half constant, a ramp over a quarter, the rest constant."""
    first, last = weights(prefixes, 0), weights(prefixes, 1)
    stages = (
        Stage(samples // 2, first),
        Stage(samples // 4, last, "cosine"),
        Stage(None, last),
    )
    plan = Plan(tuple(map(str, range(prefixes))), stages, samples)
    before = _peak()
    start = time.perf_counter()
    locator = Locator(plan, [1 << 40] * prefixes, 1)
    locator.locate(0)
    ready = time.perf_counter() - start
    for place in range(0, samples, 1024):  # chunks of a ramp are smaller in short runs
        locator.locate(place)
    seconds = time.perf_counter() - start
    return {"ready": ready, "all": seconds, "megabytes": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


SIDES = {"host": of_the_host, "schedule": of_a_schedule}


def measure(side: str, prefixes: int, samples: int) -> dict[str, float]:
    """In a process of its own."""
    words = ["--side", side, "--prefixes", str(prefixes), "--samples", str(samples)]
    done = subprocess.run(
        [sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _device() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{os.cpu_count()} x {names[0] if names else platform.machine()}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="*", default=[10**7, 10**8])
    parser.add_argument("--prefixes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a file for the JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        print(json.dumps(SIDES[options.side](options.prefixes[0], options.samples[0])))
        return
    rows = []
    print("| samples | prefixes | | ready, s | all, s | MB |\n|---|---|---|---|---|---|")
    for samples, prefixes in product(options.samples, options.prefixes):
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(options.repeats):
            for side, found in runs.items():
                found.append(measure(side, prefixes, samples))
        for side, found in runs.items():
            middle = {key: median(one[key] for one in found) for key in found[0]}
            print(
                f"| {samples:.0e} | {prefixes} | {side} | {middle['ready']:.2f} | "
                f"{middle['all']:.2f} | {middle['megabytes']:.0f} |",
                flush=True,
            )
        rows.append({"samples": samples, "prefixes": prefixes, "runs": runs})
    result = {
        "what": "time and memory of the order of a run's samples",
        "device": _device(),
        "commit": commit(),
        "flags": " ".join(sys.argv[1:]),
        "rows": rows,
    }
    text = json.dumps(result, indent=2)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
