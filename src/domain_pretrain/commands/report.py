"""``domain-pretrain report``: the table and the picture of a run, from its metrics file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.reader import METRICS_FILE, read_metrics
from domain_pretrain.report.picture import loss_picture
from domain_pretrain.report.table import corpus_tokens, loss_table, summarise


def add_parser(subparsers: Any) -> None:
    """Add the ``report`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "report",
        description=(
            f"Show what became of every domain in a run: a table of {METRICS_FILE}, and a picture "
            "of all losses. Several runs are consecutive phases: a table each, one picture."
        ),
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN_DIR",
        help=f"folder with {METRICS_FILE}, or one folder above it",
    )
    parser.add_argument("--png", type=Path, metavar="FILE", help="write the picture there")
    parser.add_argument(
        "--x",
        choices=("tokens", "iterations"),
        default="tokens",
        help="the picture's horizontal axis (%(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the tables, and draw the picture."""
    console = Console(highlight=False, markup=False)
    files = [find_metrics(folder) for folder in args.runs]
    for path in files:
        summaries = summarise(read_metrics(path), corpus_tokens(path.parent))
        if not summaries:
            raise ConfigError(f"{path} has no lines yet: is the run still starting?")
        console.print(loss_table(summaries, title=str(path.parent)))
    if args.png is not None:
        if len(files) == 1:
            loss_picture(files[0], args.png, x=args.x)
        else:
            phases = [(path.parent.name, path) for path in files]
            loss_picture(None, args.png, phases=phases, x=args.x)
        console.print(f"picture: {args.png}", soft_wrap=True)
    return 0


def find_metrics(folder: Path) -> Path:
    """The metrics file in ``folder`` or in one of its subfolders.

    Raises:
        ConfigError: there is none, or more than one below.
    """
    if (folder / METRICS_FILE).is_file():
        return folder / METRICS_FILE
    below = sorted(folder.glob(f"*/{METRICS_FILE}"))
    if len(below) == 1:
        return below[0]
    if below:
        choice = " ".join(str(path.parent) for path in below)
        raise ConfigError(
            f"{folder} holds several runs: give one, or all in their order, as in: {choice}"
        )
    raise ConfigError(
        f"no {METRICS_FILE} in {folder}: give the --domain-log-dir (by default the "
        "--tensorboard-dir) of a run with --channel-loss"
    )
