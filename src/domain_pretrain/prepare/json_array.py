"""A file that is one JSON array → its elements' bytes, without holding the file in memory."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from domain_pretrain.prepare.errors import PrepareError

PIECE_BYTES = 1 << 20
"""Read at a time."""

_BLANK = b" \t\r\n"
_STRUCTURE = re.compile(rb'["\[\]{},]')
_IN_STRING = re.compile(rb'(?:[^"\\]+|\\.)*', re.DOTALL)


def is_array(stream: io.BufferedReader) -> bool:
    """Whether the first character is ``[``; a line of JSON lines is an object or a string."""
    head = stream.peek(1).removeprefix(codecs.BOM_UTF8)
    return head.lstrip(_BLANK).startswith(b"[")


def split_array(path: Path, stream: io.BufferedReader) -> Iterator[tuple[int, bytes]]:
    """Yield the number of the first line and the bytes of every element.

    Only brackets, strings and commas are looked at; whether an element is JSON is for whoever
    parses it. After the last element a comma may stand.

    Raises:
        PrepareError: the array does not end, or more than it is in the file.
    """
    buffer, at, start = b"", 0, 0  # at: looked at up to here; start: of the element
    line = 1  # of start
    depth, in_string = 0, False
    while piece := stream.read(PIECE_BYTES):
        buffer, at, start = buffer[start:] + piece, at - start, 0
        while at < len(buffer):
            if in_string:
                found = _IN_STRING.match(buffer, at)
                assert found is not None
                at = found.end()
                if at == len(buffer) or buffer[at : at + 1] != b'"':
                    break  # the string, or an escape in it, goes on in the next piece
                in_string = False
                at += 1
                continue
            structure = _STRUCTURE.search(buffer, at)
            if structure is None:
                at = len(buffer)
                break
            at = structure.end()
            sign = structure.group()
            if sign == b'"':
                in_string = True
            elif sign in b"[{":
                depth += 1
                if depth == 1:
                    line += buffer.count(b"\n", start, at)
                    start = at
            elif sign in b"]}":
                depth -= 1
            if depth == 0 or (depth == 1 and sign == b","):
                element = buffer[start : at - 1]
                text = element.lstrip(_BLANK)
                if text:
                    yield line + element.count(b"\n", 0, len(element) - len(text)), text
                line += element.count(b"\n")
                start = at
            if depth == 0:
                _check_end(path, line, buffer[at:], stream)
                return
    raise PrepareError(
        f"{path}: begins with '[', as one JSON array does, but the array does not end: how much is "
        "missing is unknown; fetch the file again or leave it out"
    )


def _check_end(path: Path, line: int, rest: bytes, stream: io.BufferedReader) -> None:
    while rest or (rest := stream.read(PIECE_BYTES)):
        if text := rest.lstrip(_BLANK):
            line += rest.count(b"\n", 0, len(rest) - len(text))
            raise PrepareError(
                f"{path}:{line}: more after the end of the JSON array that the file begins with; "
                "give one array, or one JSON object per line"
            )
        line += rest.count(b"\n")
        rest = b""
