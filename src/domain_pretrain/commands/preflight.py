"""``domain-pretrain preflight``: check a training command before it starts."""

from __future__ import annotations

import argparse
from typing import Any

from domain_pretrain.commands.arguments import at_least_one
from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.launch.host import ask
from domain_pretrain.launch.preflight import inspect


def add_parser(subparsers: Any) -> None:
    """Add the command to ``domain-pretrain``'s parser."""
    parser = subparsers.add_parser(
        "preflight",
        usage="domain-pretrain preflight [--nodes N] [--devices-per-node N] [--quiet] "
        "-- [SCRIPT.py] <training flags>",
    )
    parser.add_argument("--nodes", type=at_least_one, default=1, help="machines (default 1)")
    parser.add_argument(
        "--devices-per-node",
        type=at_least_one,
        default=1,
        help="processes on each of them (default 1)",
    )
    parser.add_argument("--quiet", action="store_true", help="print problems only")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- WORDS")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print what the run will be, and everything that is wrong with it; 2 if anything is."""
    words = args.words[1:] if args.words[:1] == ["--"] else args.words
    report = inspect(words, args.nodes, args.devices_per_node, ask)
    console = plain_console(stderr=bool(report.problems), soft_wrap=True)
    if not args.quiet:
        report.print(console)
    for problem in report.problems:
        console.print(f"preflight: {problem}", style="red")
    return 2 if report.problems else 0
