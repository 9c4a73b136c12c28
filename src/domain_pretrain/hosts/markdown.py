"""Markdown for the generated pages; imports nothing, so that a script may use it anywhere."""

from __future__ import annotations

from collections.abc import Iterable


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table: a line of ``heads``, and one for each of ``rows``."""
    head, *body = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return "\n".join((head, "|---" * len(heads) + "|", *body))
