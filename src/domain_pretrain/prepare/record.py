"""What of a record becomes the text of a document, and which dataset and channel it goes to."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from domain_pretrain.errors import shorten
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.values import check_channel, check_value

TEXT_KEY = "text"

_ESCAPE = re.compile(r"\\(.?)", re.DOTALL)
_ESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}


class Document(NamedTuple):
    """One text, the line it begins in, and what it belongs to.

    Attributes:
        value: chooses the dataset ("": the one).
        channel: its name ("": there are none).
    """

    line: int
    text: str
    value: str = ""
    channel: str = ""


@dataclass(frozen=True)
class Selection:
    """Which fields of a record are read.

    A field is a key or a column; a dotted path (``meta.source``) leads into objects within, unless
    a key of that very name is there.

    Attributes:
        fields: whose content makes the text.
        between: what stands before, between and behind them; one more than ``fields``.
        by: the field whose value chooses the dataset; None: there is one dataset.
        channel: the field whose value names the channel; None: there are none.
        plain: the text is one field as it is, which has to be a string.
    """

    fields: tuple[str, ...]
    between: tuple[str, ...]
    by: str | None = None
    channel: str | None = None
    plain: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All fields, each once: the cells of a table's row, in this order."""
        chosen = (name for name in (self.by, self.channel) if name is not None)
        return tuple(dict.fromkeys((*self.fields, *chosen)))

    def option(self, name: str) -> str:
        """The option that has named a field, for messages."""
        if name not in self.fields:
            return "--by" if name == self.by else "--channel-key"
        return "--text-key" if self.plain else "--template"

    @property
    def needs_fields(self) -> str | None:
        """An option that only a record with fields can serve; None: a text alone will do."""
        if self.by is not None:
            return "--by"
        if self.channel is not None:
            return "--channel-key"
        return None if self.plain else "--template"

    def of_line(self, line: str) -> tuple[str, str, str]:
        """Text, value and channel of a JSON object.

        A JSON string is a text, where nothing else is asked.

        Raises:
            ValueError: it is neither, or lacks what is asked; says what.
        """
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not JSON: {error}") from error
        if isinstance(record, str):
            if self.needs_fields is not None:
                raise ValueError("a string, which has no fields")
            return record, "", ""
        if not isinstance(record, dict):
            raise ValueError(f"not a JSON object or string but {type(record).__name__}")
        return self._of(lambda name: _find(record, name))

    def of_row(self, cells: Sequence[str | None]) -> tuple[str, str, str]:
        """Text, value and channel of a table's row.

        Args:
            cells: those of ``columns``; None for null.

        Raises:
            ValueError: a cell is null, or a value cannot name a dataset or a channel.
        """
        return self._of(dict(zip(self.columns, cells, strict=True)).__getitem__)

    def _of(self, find: Callable[[str], Any]) -> tuple[str, str, str]:
        if self.plain:
            text = find(self.fields[0])
            if not isinstance(text, str):
                raise ValueError(f"{self.fields[0]!r} is {_kind(text)}, not a string")
        else:
            filled = [_spelled(name, find(name)) for name in self.fields]
            text = "".join(
                part for pair in zip(self.between, [*filled, ""], strict=True) for part in pair
            )
        value = "" if self.by is None else check_value(_spelled(self.by, find(self.by)))
        if self.channel is None:
            return text, value, ""
        return text, value, check_channel(_spelled(self.channel, find(self.channel)))


def select(
    text_key: str | None = None,
    template: str | None = None,
    by: str | None = None,
    channel_key: str | None = None,
) -> Selection:
    """What the options ask for.

    Args:
        text_key: the field of the text; None: ``text``, or the template's.
        template: text around fields in braces, such as ``Question: {question}\\n{answer}``. Two
            braces stand for one, and ``\\n``, ``\\t`` and two backslashes for what they are.
        by: the field that chooses the dataset.
        channel_key: the field that names the channel.

    Raises:
        PrepareError: both are given, or the template is none.
    """
    for option, name in (("--by", by), ("--channel-key", channel_key)):
        if name == "":
            raise PrepareError(f"{option}: names no field")
    if template is None:
        field = TEXT_KEY if text_key is None else text_key
        return Selection((field,), ("", ""), by, channel_key, plain=True)
    if text_key is not None:
        raise PrepareError("--text-key and --template both say what the text is; give one of them")
    fields, between = [], [""]
    for literal, name in _parts(template):
        between[-1] += literal
        if name is not None:
            fields.append(name)
            between.append("")
    if not fields:
        raise _no_template(template, "it names no field, as {question} does")
    return Selection(tuple(fields), tuple(between), by, channel_key)


def _parts(template: str) -> list[tuple[str, str | None]]:
    """Literal text, and the field behind it; nothing is evaluated."""
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise _no_template(template, f"{error}; write a brace that is text twice") from error
    parts = []
    for literal, name, spec, conversion in parsed:
        if name is not None and (
            spec
            or conversion
            or name != name.strip()
            or not all(name.split("."))
            or {"[", "]"} & set(name)
        ):
            shown = name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise _no_template(
                template, f"{{{shown}}} is no field; give a key or a dotted path and nothing else"
            )
        parts.append((_unescaped(template, literal), name))
    return parts


def _unescaped(template: str, literal: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPED:
            raise _no_template(
                template, rf"{found[0]!r} is none of \n, \t and \\; write a backslash twice"
            )
        return _ESCAPED[found[1]]

    return _ESCAPE.sub(character, literal)


def _no_template(template: str, why: str) -> PrepareError:
    return PrepareError(f"--template {shorten(repr(template))}: {why}")


def _find(record: dict[str, Any], name: str) -> Any:
    if name in record:
        return record[name]
    found: Any = record
    for key in name.split("."):
        if not isinstance(found, dict) or key not in found:
            there = ", ".join(map(repr, list(record)[:8]))
            raise ValueError(f"no key {name!r} among {there}")
        found = found[key]
    return found


def _spelled(name: str, value: Any) -> str:
    """As JSON and Parquet spell it alike, whoever wrote it; a fraction has many spellings."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"{name!r} is {_kind(value)}, not a string, whole number or boolean")
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__
