"""Numbers of a plan: ``20M`` tokens, a part of ``3``; kept exact, since samples are counted."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

from pydantic_core import PydanticCustomError

MOST = 10**18  # nobody has as much, and a float can hold it
UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_AMOUNT = re.compile(
    r"((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]+)?(?:e[0-9]{1,2})?) ?([kmbt]?)",
    re.IGNORECASE,
)

# What a stage gives to a domain, or to its parts, each by its name.
Given = Fraction | dict[str, Fraction]


def amount(given: Any) -> Fraction:
    """``10000``, ``10,000``, ``10k``, ``20M``, ``1.5B``, ``1e9``: a whole number above 0.

    Raises:
        ValueError: it is none.
    """
    words = _AMOUNT.fullmatch(str(given).strip().replace("e+", "e"))  # of a float, 1e+17
    if words is None or isinstance(given, bool):
        hint = "; a comma parts thousands, as in 10,000" if "," in str(given) else ""
        raise ValueError(f"should be a number above 0, as in 10000, 10k, 20M or 1.5B{hint}")
    value = Fraction(Decimal(re.sub("[,_]", "", words[1]))) * UNITS[words[2].lower()]
    if not 0 < value < MOST or value.denominator != 1:
        raise ValueError("should be a whole number above 0, and below 1e18")
    return value


def ratio(given: Any) -> Fraction:
    """A number above 0 that is relative to others.

    Raises:
        ValueError: it is none.
    """
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < MOST:
        raise ValueError("should be a number above 0")
    return Fraction(str(given))


def by_name(given: Any, number: Callable[[Any], Fraction]) -> dict[str, Given]:
    """A number for each name, or for each of its parts.

    Raises:
        PydanticCustomError: names everything in it that is wrong.
    """
    if not isinstance(given, Mapping) or not given:
        raise problem("should give a number to each domain, as in {finance: 1, general: 5}")
    found: dict[str, Given] = {}
    wrong: list[str] = []

    def read(value: Any, *path: str) -> Fraction:
        try:
            return number(value)
        except ValueError as error:
            hint = ": leave out what is not sampled" if value in (0, False) else ""
            wrong.append(f"{'.'.join(path)} {error}{hint} (given: {value!r:.80})")
            return Fraction(1)

    for name, value in given.items():
        if isinstance(value, Mapping) and value:
            found[name] = {part: read(one, name, part) for part, one in value.items()}
        else:
            found[name] = read(value, name)
    if wrong:
        raise problem("; ".join(wrong))
    return found


def problem(text: str) -> PydanticCustomError:
    """For a validator to raise, whatever braces are in ``text``."""
    return PydanticCustomError("plan", "{text}", {"text": text})
