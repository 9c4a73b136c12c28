"""``domain-pretrain``: the commands besides training itself."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from domain_pretrain.commands import demo, doctor, preflight, prepare, report
from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.version import __version__

COMMANDS = (demo, prepare, preflight, report, doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Its exit code: 0; 1 for an answer that is "no" (``doctor``); 2 for an error, with a message
        on stderr; 130 where the user interrupted it.
    """
    parser = argparse.ArgumentParser(prog="domain-pretrain", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_parser(subparsers)
    _print_whatever_the_terminal()
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except BrokenPipeError:  # ``| head`` has read enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (DomainPretrainError, OSError) as error:
        print(f"domain-pretrain {args.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"domain-pretrain {args.command}: interrupted", file=sys.stderr)
        return 130


def _print_whatever_the_terminal() -> None:
    """A terminal that cannot show a character must not end a command: it shows ``?`` instead."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
