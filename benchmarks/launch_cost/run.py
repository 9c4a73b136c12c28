#!/usr/bin/env python3
"""What the host does for a launch, and for the loss of a microbatch, on a driver that does nothing.

    python benchmarks/launch_cost/run.py --out FILE.json

Times are multiples of one small torch operation, measured in turns with everything else. The loss
path is that of the built-in entry: from the batch that the data iterator handed out to the gradient
of the losses. It is compared with Megatron's loss function and its backward pass, both with the
checks for NaN that are on by default and without, and with the least that two launches take between
PyTorch's calls: the same outputs, and no other Python.

Then what each part of the path takes within it: more than in a loop of its own, which keeps the
processor's caches warm.
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
from typing import cast

import stub
import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from host import checked_loss_func, start  # noqa: E402
from parts import parts  # noqa: E402
from provenance import provenance  # noqa: E402
from support.passes import (  # noqa: E402
    SOURCE,
    Pass,
    forward,
    loss_func,
    new_samples,
    our_loss_func,
)

from domain_pretrain.flow.tap import BatchTap, Rows  # noqa: E402
from domain_pretrain.hosts.gpt import entry  # noqa: E402
from domain_pretrain.kernels.domain_reduce import Backend, Inputs, cuda  # noqa: E402

CALLS = 200  # of each function in one turn
OPERATION = "torch operation"
VANILLA = "vanilla"
OWN = "own"


def cases() -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    backend = Backend("cuda", cuda)
    rows, columns, domains = 4, 64, 8
    counts = torch.full((rows,), float(columns))
    known = Rows.of(torch.arange(rows, dtype=torch.int32), counts).packed
    losses, mask = torch.rand(rows, columns), torch.ones(rows, columns)
    accumulator = torch.zeros(domains + 1, 5, dtype=torch.int64)
    totals = torch.zeros(4, dtype=torch.int64)
    host = {"host_loss": torch.tensor(1.0), "host_num_tokens": torch.tensor(1).int()}
    multipliers, one = torch.ones(domains), torch.ones(())
    sums = Inputs(losses, mask, known, accumulator=accumulator)
    beside_host = sums._replace(totals=totals, **host)
    of_loss = sums._replace(totals=totals, multipliers=multipliers)
    _, kept = cuda.loss(Inputs(losses, mask, known, multipliers=multipliers))
    x, y = torch.rand(8), torch.rand(8)
    plugin = forward(backend)
    batch = {"loss_mask": mask, "dataset_id": torch.tensor([0, 1, 0, 2], dtype=torch.int16)}

    def rows_of_batch() -> object:
        tap = BatchTap(iter([batch]))
        next(tap)
        return plugin._rows(tap, SOURCE, losses)

    return {
        OPERATION: lambda: x * y,
        "reduce": lambda: backend.domain_reduce(sums),
        "reduce, with the host's loss": lambda: backend.domain_reduce(beside_host),
        "loss": partial(backend.domain_loss, of_loss),
        "gradient": partial(cuda.gradient, one, kept),
        "samples of a batch": rows_of_batch,
        OWN: Pass(plugin, entry.loss_func),
        f"{OWN}, of new samples": Pass(plugin, entry.loss_func, source=new_samples()),
        f"{OWN}, reweighted": Pass(forward(backend, "lagged"), entry.loss_func),
        VANILLA: Pass(None, checked_loss_func),
        f"{OWN}, unchecked": Pass(plugin, our_loss_func),
        f"{OWN}, of new samples, unchecked": Pass(plugin, our_loss_func, source=new_samples()),
        f"{VANILLA}, unchecked": Pass(None, loss_func),
        "two launches in autograd": least(),
    }


class Least(torch.autograd.Function):
    """Two launches and the tensors that they write; ``launch`` is a plan's."""

    @staticmethod
    def forward(ctx, losses, launch):  # type: ignore[no-untyped-def]
        ctx.launch, ctx.like = launch, losses
        outputs = [torch.empty_like(scalar) for scalar in SCALARS]
        launch()
        return outputs[0]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        gradient = torch.empty_like(ctx.like)
        ctx.launch()
        return gradient, None


SCALARS = (torch.empty(()), torch.empty(2), torch.empty((), dtype=torch.int32))


def least() -> Callable[[], object]:
    """The pass through :class:`Least`."""
    case, one = torch.rand(3, 16).requires_grad_(), torch.ones(())
    launch = next(iter(cuda.driver.device(0).thread.plans.values())).enqueue
    return lambda: torch.autograd.grad(Least.apply(case, launch), case, one)


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
        start()
        functions = cases()
        times = measure(functions, given.turns)
        within = parts(cast(Pass, functions[OWN]))
    print("| | µs | torch operations | of vanilla |\n|---|---:|---:|---:|")
    for name, value in times.items():
        print(
            f"| {name} | {value:.2f} | {value / times[OPERATION]:.1f} "
            f"| {value / times[VANILLA]:.2f} |"
        )
    print("\n| part | µs |\n|---|---:|")
    for name, value in within.items():
        print(f"| {name} | {value:.1f} |")
    if given.out:
        us = {name: round(value, 3) for name, value in times.items()}
        content = {**provenance(__file__), "us": us, "parts_us": within}
        given.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
