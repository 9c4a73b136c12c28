"""``--by``, ``--channel-key``: what a field's values may be, and what their domains are called."""

from __future__ import annotations

import re

from domain_pretrain.errors import shorten
from domain_pretrain.prepare.errors import PrepareError

MAX_VALUES = 256
"""Each value keeps a file or two open, and counters of the whole vocabulary in memory."""

MAX_CHANNELS = 4096
"""A field with more is no channel but a number of the record. An int16 holds them."""

_LONGEST = 255 - len(".holdout.manifest.json")  # bytes that a file system allows for one name

# Datasets' own endings; Megatron and a config would take such a prefix for a file of another.
_ENDINGS = (".bin", ".idx", ".npy", ".json", ".yaml", ".holdout")

_SPELLED = {"+": "plus", "#": "sharp", "/": "."}  # C, C++ and C# are three domains
_NOT_NAME = re.compile(r"[^\w.-]+")


def check_value(value: str) -> str:
    """``value``, if it can be part of a path as it is; ``/`` makes folders.

    Raises:
        ValueError: it cannot; says why.
    """
    why = _why_no_name(value) or _why_no_path(value)
    if why:
        raise ValueError(f"{shorten(repr(value), 80)} names no dataset: {why}")
    return value


def check_channel(value: str) -> str:
    """``value``, if it can name a channel; ``/`` parts a name, as in ``finance/news``.

    Raises:
        ValueError: it cannot; says why.
    """
    why = _why_no_name(value)
    if why:
        raise ValueError(f"{shorten(repr(value), 80)} names no channel: {why}")
    return value


def _why_no_name(value: str) -> str | None:
    if not value.isprintable():  # also half of a surrogate pair
        return "control characters or such in it"
    for part in value.split("/"):
        if not part:
            return "a part of it is empty" if value else "empty"
        if part != part.strip():
            return "white space at an end"
        if len(part.encode("utf-8")) > _LONGEST:
            return f"longer than {_LONGEST} bytes"
    return None


def _why_no_path(value: str) -> str | None:
    for part in value.split("/"):
        if part in (".", ".."):
            return "a part of the path that is '.' or '..'"
        if part.endswith(_ENDINGS):
            return f"ends as a file of a dataset does ({', '.join(_ENDINGS)})"
    return None


def domain_name(value: str) -> str:
    """A name that ``data.domain`` takes: ``finance.news`` for ``finance/news``.

    Every other character that a name cannot have becomes ``_``.
    """
    spelled = "".join(_SPELLED.get(character, character) for character in value)
    name = _NOT_NAME.sub("_", spelled)
    return name if re.match(r"\w", name) else f"_{name}"


class DomainNames:
    """The values of one run and their domains' names, each of which stands for one value.

    Args:
        option: and the field that it names, for messages.
        most: values that there may be.
    """

    def __init__(self, option: str, most: int) -> None:
        self._option = option
        self._most = most
        self._values: dict[str, str] = {}

    def add(self, value: str) -> None:
        """Take ``value`` in.

        Raises:
            PrepareError: another value has the same domain name, or there are too many.
        """
        name = domain_name(value)
        other = self._values.setdefault(name, value)
        if other != value:
            raise PrepareError(
                f"{self._option}: the values {other!r} and {value!r} would both be the domain "
                f"{name!r}; rename one of them in the data, or mend its spelling"
            )
        if len(self._values) > self._most:
            raise PrepareError(
                f"{self._option}: more than {self._most:,} values ({shorten(repr(value), 80)} is "
                "one of them), so nothing was written; choose a field with fewer values"
            )
