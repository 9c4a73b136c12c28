"""HTML in which no text can become an element: what is not made here is escaped."""

from __future__ import annotations

import html
import json
from typing import Any

_EMPTY = ("input", "br", "meta")  # elements without an end


class Markup(str):
    """HTML that stands as it is."""

    __slots__ = ()


def element(name: str, *content: str | None, **attributes: str | bool | None) -> Markup:
    """One element.

    Args:
        name: of it.
        content: text, which is escaped; or markup. None is left out.
        attributes: ``class_`` is ``class``, ``data_x`` is ``data-x``; True stands without a value,
            None and False are left out.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    start = f"<{name}{given}>"
    return Markup(start if name in _EMPTY else f"{start}{join(*content)}</{name}>")


def join(*content: str | None) -> Markup:
    """Text and markup one after the other."""
    return Markup(
        "".join(
            one if isinstance(one, Markup) else html.escape(one)
            for one in content
            if one is not None
        )
    )


def data(value: Any) -> Markup:
    """JSON for a ``<script>``: no name in it can end that, or a line of it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))  # in ASCII
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)
