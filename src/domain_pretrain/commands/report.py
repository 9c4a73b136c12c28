"""``domain-pretrain report``: the tables and the picture of a run, from its metrics file."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.errors import ConfigError
from domain_pretrain.records.reader import METRICS_FILE, read_evaluations, read_findings
from domain_pretrain.report.evaluations import models_of, print_evaluations
from domain_pretrain.report.history import read_history
from domain_pretrain.report.page.write import write_page
from domain_pretrain.report.picture import check_picture, loss_picture
from domain_pretrain.report.table import (
    average_note,
    event_lines,
    finding_lines,
    host_table,
    loss_table,
    summarise,
    summarise_parents,
)
from domain_pretrain.whole_file import check_writable


def add_parser(subparsers: Any) -> None:
    """Add the ``report`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "report",
        description=(
            f"Show what became of every domain in a run: tables of {METRICS_FILE}, and a picture "
            "of all losses. Several runs are consecutive phases: tables of each, one picture."
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
        "--html",
        type=Path,
        metavar="FILE",
        help="write one HTML page there, which needs no network: curves, alarms, checks, tables",
    )
    parser.add_argument(
        "--x",
        choices=("tokens", "iterations"),
        default="tokens",
        help="the horizontal axis of the picture, and of the page to begin with (%(default)s)",
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="draw the runs over each other from one start, not one after the other",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the tables, and draw the picture."""
    console = plain_console()
    if args.html is not None:  # said before gigabytes are read
        check_writable(args.html, "--html")
    if args.png is not None:
        check_picture(args.png)
        check_writable(args.png, "--png")
    files = [find_metrics(folder) for folder in args.runs]
    histories, last = [], []
    for path in files:
        history = read_history(path)
        if not history.domains:
            raise ConfigError(f"{path} has no lines yet: is the run still starting?")
        parents = summarise_parents(history)
        console.print(loss_table(summarise(history), str(path.parent), parents))
        numbers = host_table(history)
        if numbers is not None:
            console.print(numbers)
        for line in [*event_lines(history), *finding_lines(read_findings(path.parent))]:
            console.print(line)
        histories.append(history)
        evaluations = read_evaluations(path.parent)
        if evaluations:
            print_evaluations(console, models_of(evaluations))
        last.append(evaluations[-1:])
    names = run_names([path.parent for path in files])
    named = list(zip(names, histories, strict=True))
    averages = average_note(named)
    if averages:
        console.print(averages, soft_wrap=True)
    if args.compare and sum(map(len, last)) > 1:
        ends = [(name, one) for name, found in zip(names, last, strict=True) for one in found]
        print_evaluations(console, ends, "The last evaluations")
    if args.html is not None:
        # Beside the metrics, whose folder is the run's own.
        folders = [path.parent for path in files]
        size = write_page(named, folders, args.html, x=args.x, compare=args.compare)
        console.print(f"page: {args.html} ({size / 1e6:.1f} MB)", soft_wrap=True)
    if args.png is not None:
        names = run_names(args.runs) if len(files) > 1 else [""]
        named = list(zip(names, histories, strict=True))
        loss_picture(named, args.png, x=args.x, compare=args.compare)
        console.print(f"picture: {args.png}", soft_wrap=True)
    return 0


def run_names(folders: Sequence[Path]) -> list[str]:
    """What to call several runs: the folders' own names, or all of their paths where two agree."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


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
