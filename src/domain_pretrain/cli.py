"""``domain-pretrain``: the commands beside training itself."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from domain_pretrain import __version__, doctor
from domain_pretrain.data import prepare_command
from domain_pretrain.demo import command as demo_command
from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.launch import preflight
from domain_pretrain.report import report_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (2 for an error with a message)."""
    parser = argparse.ArgumentParser(prog="domain-pretrain", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (demo_command, prepare_command, preflight, report_command, doctor):
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        return int(args.run(args))
    except DomainPretrainError as error:
        print(f"domain-pretrain: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
