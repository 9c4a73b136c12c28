"""One optimizer step's domain statistics on several ranks: sums and collectives together.

    python benchmarks/domain_reduce/step.py [--ranks 2] [--microbatches 8]

The recipe in circulation makes its sums global in every microbatch: two all-reduces over context
parallelism and three all-gathers over data parallelism. The plugin adds to an accumulator and
reduces it once a step. CPU and gloo; both take turns on the same ranks. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "unit"), str(Path(__file__).parent)]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from baselines import Bincount, Ours  # noqa: E402
from run import inputs, machine  # noqa: E402

DOMAINS, ROWS, COLUMNS = 8, 2, 4096


def recipe_step(arguments, microbatches: int) -> None:  # type: ignore[no-untyped-def]
    losses, mask, ids, _ = arguments
    recipe, ranks = Bincount(DOMAINS, "cpu"), dist.get_world_size()
    for _ in range(microbatches):
        row_losses, row_tokens = (losses * mask).sum(dim=1), mask.sum(dim=1)
        dist.all_reduce(row_losses)
        dist.all_reduce(row_tokens)
        gathered = []
        for rows in (row_losses, row_tokens, ids):
            parts = [torch.empty_like(rows) for _ in range(ranks)]
            dist.all_gather(parts, rows)
            gathered.append(torch.cat(parts))
        sums, tokens, domains = gathered
        recipe(sums[:, None], torch.ones_like(tokens)[:, None], domains, None)


def our_step(arguments, microbatches: int) -> None:  # type: ignore[no-untyped-def]
    ours = Ours(DOMAINS, "cpu", "reference")
    for _ in range(microbatches):
        ours(*arguments)
    dist.all_reduce(ours.sums)


def rank_main(rank: int, options: argparse.Namespace, store: str, seconds: float = 6.0) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=options.ranks
    )
    arguments = inputs(ROWS, COLUMNS, DOMAINS, "row", "cpu", seed=rank)
    times: dict[str, list[float]] = {"bincount recipe": [], "reference": []}
    start, go_on = time.perf_counter(), torch.ones(1)
    while go_on.item():
        for name, step in (("bincount recipe", recipe_step), ("reference", our_step)):
            dist.barrier()
            before = time.perf_counter()
            step(arguments, options.microbatches)
            times[name].append(1e6 * (time.perf_counter() - before))
        go_on.fill_(float(time.perf_counter() - start < seconds))
        dist.broadcast(go_on, src=0)
    if rank == 0:
        medians = {name: round(statistics.median(samples), 1) for name, samples in times.items()}
        shape = {"b": ROWS, "s": COLUMNS, "D": DOMAINS, **vars(options)}
        ratio = medians["bincount recipe"] / medians["reference"]
        result = {"machine": machine("cpu"), **shape, "us_per_step": medians, "ratio": ratio}
        print(json.dumps(result, indent=1))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--microbatches", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        torch.multiprocessing.spawn(rank_main, (options, store), nprocs=options.ranks)


if __name__ == "__main__":
    main()
