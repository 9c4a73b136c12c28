"""The console that the commands print on."""

from __future__ import annotations

from rich.console import Console


def plain_console(*, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """One that shows every text as it is: a path may have brackets, a name colons.

    What is to be coloured has a ``style``, or is a ``Text`` with one.

    Args:
        stderr: print there instead of on standard output.
        soft_wrap: leave it to the terminal to break lines.
    """
    return Console(stderr=stderr, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False)
