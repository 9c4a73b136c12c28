"""Damage to bytes and values, the same for every kind of input."""

from __future__ import annotations

import random
from collections.abc import Iterator, MutableMapping, MutableSequence
from typing import Any

# What trips readers: other types, limits of numbers, names of files, and text that is none.
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf")),
    *("", " ", ".", "..", "/", "~", "*", "**", "[", "[a-", "{}", "{0}", "%s", "\\", "-", "--"),
    *("no", "1e3", "nan", "0x10", "2024-01-01", "null", "!!", "&a", "*a", "<<"),
    *("\0", "\ud800", "\ufeff", "\u2028", "a\nb", "数学", "é" * 300, "x" * 5_000, "s3://a/b"),
    *("../../etc/passwd", "/dev/null", "a.idx", "a.bin", "data/a0", "[bold]", "[/]"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [0] * 50),
)
_PIECES = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\r", b"\n", b"\t", b'"', b"'"),
    *(b"{", b"}", b"[", b"]", b":", b",", b"\\", b"\\ud800", b"&a ", b"*a", b"!!", b"---\n"),
    *(b"NaN", b"-1", b"1e999", b"9" * 40, b"null", b"<<: ", b"? ", b"\xff" * 8),
)


def damaged(rng: random.Random, data: bytes) -> bytes:
    """``data`` with one to three small changes, or cut off; it may be what it was by chance."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 8, 64)))
        change = rng.randrange(6)
        if change == 0:
            data = data[:at]
        elif change == 1:
            data = data[:at] + bytes(rng.randrange(256) for _ in range(end - at)) + data[end:]
        elif change == 2:
            data = data[:at] + rng.choice(_PIECES) + data[at:]
        elif change == 3:
            data = data[:at] + data[end:]
        elif change == 4:
            data = data[:end] + data[at:end] * rng.choice((1, 3, 50)) + data[end:]
        elif at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    return data


def flipped(rng: random.Random, data: bytes, first: int = 0, stop: int | None = None) -> bytes:
    """``data`` with another byte somewhere from ``first`` up to ``stop``."""
    at = rng.randrange(first, len(data) if stop is None else stop)
    return data[:at] + bytes([data[at] ^ rng.randrange(1, 256)]) + data[at + 1 :]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, MutableMapping | MutableSequence):
        for key in list(value) if isinstance(value, MutableMapping) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def with_nasty(rng: random.Random, value: Any) -> Any:
    """A value of JSON's, changed in place: something else somewhere within, or one thing less."""
    places = list(_places(value))
    if not places:
        return rng.choice(NASTY)
    holder, key = rng.choice(places)
    change = rng.randrange(4)
    if change == 0:
        del holder[key]
    elif change == 1 and isinstance(holder, MutableMapping):
        holder[_name(rng.choice(NASTY))] = holder.pop(key)
    else:
        holder[key] = rng.choice(NASTY)
    return value


def _name(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def nested(rng: random.Random, opening: str = "[", closing: str = "]") -> str:
    """Brackets in brackets, as deep as recursion goes and deeper."""
    depth = rng.choice((50, 900, 1_100, 5_000, 100_000))
    return opening * depth + closing * depth
