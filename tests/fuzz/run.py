"""Malformed input for every reader: ``make fuzz``, or ``python -m fuzz.run`` in ``tests``."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module

from fuzz import blends, checkpoints, configs, corpora, metrics, plans, tokenizers
from fuzz.case import Make, draw, judge

SEED = 2026
# They are imported where they are first needed, and the case that needs them is not slow.
SLOW_IMPORTS = (
    *("megatron.core.msc_utils", "megatron.core.datasets.indexed_dataset", "matplotlib.figure"),
    *("pyarrow.parquet", "sentencepiece", "tokenizers", "torch.distributed.checkpoint"),
)


@dataclass(frozen=True)
class Kind:
    """A kind of input: what makes one, how many a full run takes, and how many every test run."""

    make: Make
    full: int
    share: int


KINDS = {
    "configs": Kind(configs.case, 5_000, 1_000),
    "blends": Kind(blends.case, 2_000, 500),
    "plans": Kind(plans.case, 1_000, 250),
    "corpora": Kind(corpora.case, 1_000, 150),
    "metrics": Kind(metrics.case, 1_000, 250),
    "tokenizers": Kind(tokenizers.case, 200, 200),
    "checkpoints": Kind(checkpoints.case, 500, 200),
}


def findings(kind: str, indices: range, seed: int, limit_s: float) -> Iterator[str]:
    """What the product does wrong with the cases of these numbers."""
    for index in indices:
        case = draw(KINDS[kind].make, kind, seed, index)
        problem = judge(case, limit_s)
        if problem is not None and problem.startswith("hangs"):  # a busy machine is slow, too
            problem = judge(case, limit_s)
        if problem is not None:
            again = f'make fuzz ARGS="{kind} --seed {seed} --index {index}"'
            yield f"{kind} {index}, {case.name}: {problem}\n  again: {again}"


def main() -> int:
    """Run and report; 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m fuzz.run", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"{', '.join(KINDS)} (all)")
    parser.add_argument("--seed", type=int, default=SEED, help="(%(default)s)")
    parser.add_argument("--index", type=int, help="one case alone, of one kind")
    parser.add_argument("--count", type=int, help="cases of each kind (those of a full run)")
    parser.add_argument(
        "--limit", type=float, default=2, metavar="S", help="longer hangs (%(default)s)"
    )
    args = parser.parse_args()
    if unknown := set(args.kinds) - KINDS.keys():
        parser.error(f"unknown kind {', '.join(sorted(unknown))}")
    for name in SLOW_IMPORTS:
        import_module(name)
    total, table = 0, []
    for kind in args.kinds or KINDS:
        start, found = time.monotonic(), 0
        count = KINDS[kind].full if args.count is None else args.count
        indices = range(count) if args.index is None else range(args.index, args.index + 1)
        for problem in findings(kind, indices, args.seed, args.limit):
            found += 1
            print(problem, flush=True)
        table.append((kind, len(indices), found, time.monotonic() - start))
        total += found
    print(f"seed {args.seed}\n{'kind':12} {'cases':>6} {'findings':>9} {'seconds':>8}")
    for kind, cases, found, seconds in table:
        print(f"{kind:12} {cases:6,} {found:9,} {seconds:8,.0f}")
    return min(total, 1)


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
