"""``domain-pretrain``: the commands besides training itself."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.version import __version__

COMMANDS = {
    "demo": "continued pretraining on four small domains, from nothing to the picture",
    "import": "make a checkpoint to start from of a Hugging Face model",
    "prepare": "make a Megatron dataset (.bin, .idx) from text files",
    "plan": "from budgets in tokens, samples and stages to a run's flags",
    "preflight": "check a training command before it starts",
    "trace": "show which documents the model read at a step, or when it reads a document",
    "replay": "whether a jump of the loss came of its data, or of the model",
    "watch": "follow a run in the terminal while it trains",
    "report": "show what became of every domain in a run",
    "eval": "what models know, before and after: probes, differences, what was forgotten",
    "export": "make a Hugging Face model of a run's checkpoint",
    "doctor": "check versions, devices and seams",
}
"""Modules beside this one, and their lines in the help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Its exit code: 0; 1 for an answer that is "no" (``doctor``); 2 for an error, with a message
        on stderr; 130 where the user interrupted it.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="domain-pretrain", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    # Only the one that is asked for is imported: with torch behind some, -h would take seconds.
    asked = next((word for word in words if word != "--"), None)
    behind: list[str] = []
    for name, text in COMMANDS.items():
        if name == asked:
            module = import_module(f"domain_pretrain.commands.{name}")
            module.add_parser(subparsers)
            if getattr(module, "TAKES_WORDS", False) and "--" in words:
                # By hand: argparse would add them to the command's own list of arguments.
                at = words.index("--")
                words, behind = words[:at], words[at + 1 :]
        else:
            subparsers.add_parser(name, help=text)
    _print_whatever_the_terminal()
    args = parser.parse_args(words, argparse.Namespace(behind=behind))
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
