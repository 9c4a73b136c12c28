"""``domain-pretrain plan``: from budgets in tokens, samples and stages to a run's flags."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from domain_pretrain.planning.make import make_plan
from domain_pretrain.planning.output import CONFIG, PLAN, rate_flags, write
from domain_pretrain.planning.section import PlanFile
from domain_pretrain.planning.table import data_table, stage_table


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
    out = Console(highlight=False, soft_wrap=True)
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    plan = make_plan(PlanFile.load(args.config))
    out.print(stage_table(plan))
    out.print(data_table(plan))
    if plan.left_out:
        out.print(f"not sampled: {', '.join(plan.left_out)}", markup=False)
    for warning in plan.warnings:
        told.print(f"plan: {warning}", style="yellow", markup=False)
    if args.strict and plan.warnings:
        told.print("plan: --strict, so nothing is written", style="red", markup=False)
        return 1
    folder = args.output or Path(f"{args.config.stem}.plan")
    flags = write(plan, args.config, folder)
    out.print(f"written: {folder / PLAN}, {folder / CONFIG}", markup=False)
    out.print(f"train with: {shlex.join(flags)}", markup=False)
    out.print(f"learning rate, for example: {shlex.join(rate_flags(plan))}", markup=False)
    return 0
