#!/usr/bin/env python3
"""What the host does for a launch, and for the loss of a microbatch, on a driver that does nothing.

    python benchmarks/launch_cost/run.py --out FILE.json

Times are multiples of one small torch operation, measured in turns with everything else. The loss
path is that of the built-in entry: from the batch that the data iterator handed out to the gradient
of the losses. It is compared with Megatron's loss function and its backward pass.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import stub
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from provenance import provenance  # noqa: E402
from support.passes import SOURCE, Pass, forward, loss_func, our_loss_func  # noqa: E402

from domain_pretrain.flow.tap import BatchTap, Rows  # noqa: E402
from domain_pretrain.kernels.domain_reduce import Backend, HostResult, Tokens, cuda  # noqa: E402
from domain_pretrain.kernels.domain_reduce.contract import Inputs  # noqa: E402

CALLS = 200  # of each function in one turn
OPERATION = "torch operation"
VANILLA = "vanilla"


def cases() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    backend = Backend("cuda", cuda)
    rows, columns, domains = 4, 64, 8
    counts = torch.full((rows,), float(columns))
    known = Rows.of(torch.arange(rows, dtype=torch.int32), counts).packed
    tokens = Tokens(torch.rand(rows, columns), torch.ones(rows, columns), known)
    accumulator = torch.zeros(domains + 1, 5, dtype=torch.int64)
    host = HostResult(
        torch.zeros(4, dtype=torch.int64), torch.tensor(1.0), torch.tensor(1, dtype=torch.int32)
    )
    multipliers, one = torch.ones(domains), torch.ones(())
    _, kept = cuda.loss(Inputs(*tokens, multipliers))
    x, y = torch.rand(8), torch.rand(8)
    plugin = forward(backend)
    batch = {"loss_mask": tokens.mask, "dataset_id": torch.tensor([0, 1, 0, 2], dtype=torch.int16)}

    def rows_of_batch() -> object:
        tap = BatchTap(iter([batch]))
        next(tap)
        return plugin._rows(tap, SOURCE, tokens.losses)

    return {
        OPERATION: lambda: x * y,
        "reduce": lambda: backend.domain_reduce(accumulator, tokens),
        "reduce, with the host's loss": lambda: backend.domain_reduce(accumulator, tokens, host),
        "loss": partial(backend.domain_loss, accumulator, tokens, multipliers, totals=host.totals),
        "gradient": partial(cuda.gradient, one, kept),
        "samples of a batch": rows_of_batch,
        "own": Pass(plugin, our_loss_func),
        "own, reweighted": Pass(forward(backend, "lagged"), our_loss_func),
        VANILLA: Pass(None, loss_func),
    }


def measure(functions: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """µs of a call of each: the median over turns, one thread, without the garbage collector."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in functions}
    gc.disable()
    for turn in range(turns + 1):
        for name, function in functions.items():
            start = time.thread_time()
            for _ in range(CALLS):
                function()
            if turn:  # the first one warms up
                times[name].append(1e6 * (time.thread_time() - start) / CALLS)
    gc.enable()
    return {name: statistics.median(samples) for name, samples in times.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--out", type=Path, help="also write the times as JSON")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stub.load(Path(folder))
        stub.pretend()
        times = measure(cases(), given.turns)
    print("| | µs | torch operations | of vanilla |\n|---|---:|---:|---:|")
    for name, value in times.items():
        print(
            f"| {name} | {value:.2f} | {value / times[OPERATION]:.1f} "
            f"| {value / times[VANILLA]:.2f} |"
        )
    if given.out:
        content = {**provenance(__file__), "us": {k: round(v, 3) for k, v in times.items()}}
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
