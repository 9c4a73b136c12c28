"""What several commands read in the same way."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """A number of processes, say, for ``argparse``.

    Raises:
        ArgumentTypeError: it is no whole number, or below 1.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from 1 on")
    return int(text)
