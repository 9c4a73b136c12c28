"""Text in other encodings becomes UTF-8 here, so that all that follows knows one encoding."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import Any

from domain_pretrain.prepare.errors import PrepareError

UTF_8 = "utf-8"

# The longest first: UTF-32's begins with UTF-16's.
MARKS = {
    codecs.BOM_UTF32_LE: ("utf-32", "utf-32-le"),
    codecs.BOM_UTF32_BE: ("utf-32", "utf-32-be"),
    codecs.BOM_UTF8: (UTF_8,),
    codecs.BOM_UTF16_LE: ("utf-16", "utf-16-le"),
    codecs.BOM_UTF16_BE: ("utf-16", "utf-16-be"),
}
"""Byte order marks, and the encodings whose they are."""


def known(name: str) -> str:
    """The one name of an encoding that has many.

    Raises:
        PrepareError: Python knows no such encoding of text.
    """
    try:
        "a".encode(name)  # base64 and the like are codecs, but not of text
        found = codecs.lookup(name).name
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError) as error:
        raise PrepareError(
            f"--encoding {name!r}: unknown; give a name that Python knows, such as utf-8, utf-16, "
            "gb18030, big5, shift_jis or cp1252"
        ) from error
    return UTF_8 if found == "utf-8-sig" else found  # a mark is dropped anyway


def check_mark(path: Path, head: bytes, encoding: str) -> None:
    """Refuse a file whose byte order mark is that of another encoding than ``encoding``.

    Raises:
        PrepareError: it is.
    """
    for mark, names in MARKS.items():
        if head.startswith(mark):
            if encoding not in names:
                raise PrepareError(
                    f"{path}: begins with the byte order mark of {names[-1]}, but is read as "
                    f"{encoding}; give --encoding {names[0]}"
                )
            return


class Recoded(io.RawIOBase):
    """``stream``, which is in ``encoding``, as UTF-8.

    What ``encoding`` does not know becomes half a surrogate pair, which UTF-8 does not know:
    whoever decodes the line finds it bad, as it is.

    Raises:
        PrepareError: the encoding cannot go on after an error.
    """

    def __init__(self, path: Path, stream: io.BufferedReader, encoding: str) -> None:
        self._path = path
        self._stream = stream
        self._encoding = encoding
        self._decoder = codecs.getincrementaldecoder(encoding)(_KEEP_BAD)
        self._rest = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        """A stream for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to ``len(buffer)`` bytes of UTF-8."""
        while not self._rest and not self._ended:
            raw = self._stream.read(len(buffer))
            self._ended = not raw
            try:
                text = self._decoder.decode(raw, final=self._ended)
            except UnicodeError as error:
                raise PrepareError(
                    f"{self._path}: cannot be read as {self._encoding}: {error}; give --encoding"
                ) from error
            self._rest = memoryview(text.encode(UTF_8, "surrogatepass"))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


_KEEP_BAD = "domain_pretrain.keep_bad"


def _keep_bad(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\udc80", error.end


codecs.register_error(_KEEP_BAD, _keep_bad)
