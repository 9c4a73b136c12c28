"""``domain-pretrain watch``: a run in the terminal, while it trains."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live

from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.errors import ConfigError
from domain_pretrain.records.reader import METRICS_FILE
from domain_pretrain.report.frame import frame, waiting
from domain_pretrain.report.live import Follower

EVERY_S = 1.0  # between two looks at the files


def add_parser(subparsers: Any) -> None:
    """Add the ``watch`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "watch",
        description=(
            "Follow a run in the terminal: every domain's loss and its last windows, shares and "
            "weights, alarms, and when it ends. Into a pipe, a frame for each new line. Ends with "
            "Ctrl-C."
        ),
    )
    parser.add_argument(
        "folder",
        type=Path,
        metavar="RUN_DIR",
        help=f"folder with {METRICS_FILE}; the run may be yet to start",
    )
    parser.add_argument("--once", action="store_true", help="print one frame, and end")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Show frames until the user has seen enough."""
    console = plain_console()
    follower = Follower(args.folder.parent if args.folder.is_file() else args.folder)
    follower.read()
    if args.once:
        if follower.run is None:
            raise ConfigError(
                f"no {METRICS_FILE} in {args.folder}, or nothing in it: give the "
                "--domain-log-dir (by default the --tensorboard-dir) of a run with --channel-loss"
            )
        console.print(_screen(follower, console))
        return 0
    try:
        if console.is_terminal:
            _redraw(follower, console)
        else:
            _append(follower, console)
    except KeyboardInterrupt:
        pass
    finally:
        follower.close()
    return 0


def _redraw(follower: Follower, console: Console) -> None:
    """On a terminal: one frame in place, and the last one stays when it ends."""
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_screen(follower, console), refresh=True)
                time.sleep(EVERY_S)
                follower.read()
    finally:
        console.print(_screen(follower, console))


def _append(follower: Follower, console: Console) -> None:
    """Anywhere else: a frame below the other, whenever there is something new."""
    console.print(_screen(follower, console))
    while True:
        time.sleep(EVERY_S)
        if follower.read():
            console.print(_screen(follower, console))


def _screen(follower: Follower, console: Console) -> RenderableType:
    if follower.run is None:
        return waiting(follower.path)
    written = follower.written_at()
    # Only where it is kept up to date.
    idle = time.time() - written if console.is_terminal and written is not None else None
    return frame(follower.run, height=console.size.height, idle_s=idle)
