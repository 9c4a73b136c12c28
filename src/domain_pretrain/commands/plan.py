"""``domain-pretrain plan``: from budgets in tokens, samples and stages to a run's flags."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import Any

from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.commands.trace import open_trace
from domain_pretrain.data.already_read import KEY, content_of
from domain_pretrain.data.index import Index
from domain_pretrain.planning.before import read_before
from domain_pretrain.planning.corpora import ALREADY_READ
from domain_pretrain.planning.make import make_plan
from domain_pretrain.planning.output import CONFIG, PLAN, rate_flags, write
from domain_pretrain.planning.section import Continues, PlanFile
from domain_pretrain.planning.table import changes_table, data_table, stage_table
from domain_pretrain.process import notice


def add_parser(subparsers: Any) -> None:
    """Add the ``plan`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "plan",
        description=(
            "Say what a run takes of each domain, from its budgets, and write Megatron's flags for "
            f"it: {PLAN} and {CONFIG}. It reads the indices of the data, PREFIX.idx."
        ),
    )
    parser.add_argument(
        "config", type=Path, metavar="CONFIG", help="the budgets, in YAML: see docs/planning.md"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of what is written (in this one, of finance.yaml: finance.plan)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="a warning is an error: write nothing, and end with 1"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan and write it; 1 where a warning forbids that."""
    out = plain_console(soft_wrap=True)
    told = plain_console(stderr=True, soft_wrap=True)
    file = PlanFile.load(args.config)
    plan = make_plan(file, None if file.continues is None else _read_by(file.continues))
    if plan.before is not None:
        out.print(changes_table(plan.before, plan))
    out.print(stage_table(plan))
    out.print(data_table(plan))
    if plan.left_out:
        out.print(f"not sampled: {', '.join(plan.left_out)}")
    for warning in plan.warnings:
        told.print(f"plan: {warning}", style="yellow")
    if args.strict and plan.warnings:
        told.print("plan: --strict, so nothing is written", style="red")
        return 1
    folder = args.output or Path(f"{args.config.stem}.plan")
    flags = write(plan, args.config, folder)
    names = [PLAN, CONFIG, *([] if plan.read is None else [ALREADY_READ])]
    out.print(f"written: {', '.join(str(folder / name) for name in names)}")
    out.print(f"train with: {shlex.join(flags)}")
    out.print(f"learning rate, for example: {shlex.join(rate_flags(plan))}")
    return 0


def _read_by(continues: Continues) -> dict[str, Any] | None:
    """What the run before has read until its checkpoint; None where that is not asked for."""
    if continues.run is None:
        return None
    iteration = read_before(continues).iteration
    with contextlib.redirect_stdout(sys.stderr):  # what Megatron prints
        trace = open_trace(continues.run)
        _, reads = trace.reads(iteration)
        before = trace.already_read(iteration)
        found = {
            place: (Index.read(place), one.documents(continues.read_beyond))
            for place, one in reads.items()
        }
    for place, (index, documents) in found.items():
        tokens = int(index.lengths()[documents].sum(dtype="int64"))
        notice(
            f"{reads[place].prefix}: {documents.sum():,} of {len(documents):,} documents were "
            f"read, and are left out: {tokens:,} of {index.tokens:,} tokens"
        )
    indices = {place: index for place, (index, _) in found.items()}
    beyond = {} if before is None else before.beyond(indices)
    for prefix, one in beyond.items():
        read = len(one.numbers(f"{KEY} of {continues.run}: {prefix}"))
        notice(
            f"{prefix}: {read:,} of {one.documents:,} documents were read before that run, which "
            "has none of them, and are left out"
        )
    return content_of(str(continues.run), iteration, found, beyond)
