"""Input files → chunks of raw records. The parent process reads; it leaves decoding to workers."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from domain_pretrain.prepare.encodings import UTF_8, Recoded, check_mark
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.json_array import is_array, split_array
from domain_pretrain.prepare.parquet import import_pyarrow, split_parquet
from domain_pretrain.prepare.record import Selection
from domain_pretrain.prepare.tables import Row, split_table

Record = bytes | Row | None

Kind = Literal["json", "text", "csv", "tsv", "parquet"]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
COMPRESSIONS = (".gz", ".zst")
DELIMITERS: dict[str, str] = {"csv": ",", "tsv": "\t"}

CHUNK_BYTES = 1 << 20
"""Raw bytes handed to a worker at a time; a longer record is a chunk of its own."""

TEXT_BYTES = 4 << 20
"""A text file beyond this is cut at line ends, so that memory stays bounded."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one input, as they are in the file.

    Attributes:
        source: index of the input.
        path: its path, for messages.
        kind: ``json``: a record is a line, or an element of an array; ``text``: a piece of text;
            ``csv``, ``tsv``, ``parquet``: the cells of a row.
        numbers: of every record's first line (Parquet: row), from 1.
        records: UTF-8, or what claims to be; None for a row that is not as long as the others.
        position: bytes of the input file read so far, compressed as it is on disk.
    """

    source: int
    path: str
    kind: Kind
    numbers: Sequence[int]
    records: Sequence[Record]
    position: int


class HashedFile(io.RawIOBase):
    """A file read once, front to back, hashed on the way: the data is what the hash says."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self._sha256 = hashlib.sha256()
        self.position = 0

    def readable(self) -> bool:
        """A stream for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read up to ``len(buffer)`` bytes."""
        count = self._file.readinto(buffer)
        self._sha256.update(memoryview(buffer)[:count])
        self.position += count
        return count

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def drain(self) -> None:
        """Read what is left."""
        while self.read(CHUNK_BYTES):
            pass

    def sha256(self) -> str:
        """Hash of what was read."""
        return self._sha256.hexdigest()


def has_kind(path: Path) -> bool:
    """Whether its suffix tells the kind of ``path``."""
    return _suffixes(path)[0] in KINDS


def kind_of(path: Path, otherwise: str | None = None) -> Kind:
    """Kind of the records in ``path``, by its suffix.

    Args:
        path: the file.
        otherwise: where the suffix is none of ``KINDS``: the one to take, without its dot.

    Raises:
        PrepareError: the kind is unknown, or a compressed Parquet file.
    """
    suffix, compression = _suffixes(path)
    kind = KINDS.get(suffix) or KINDS.get(f".{otherwise}")
    if kind is None:
        raise PrepareError(
            f"{path}: unknown kind of file; give one of {', '.join(KINDS)} (all but the last also "
            f"with {' or '.join(COMPRESSIONS)}), or say with --kind what it is"
        )
    if kind == "parquet" and compression:
        raise PrepareError(f"{path}: Parquet compresses by itself; unpack it to .parquet")
    return kind


def _suffixes(path: Path) -> tuple[str, str]:
    """Suffix of the kind and of the compression, in lower case; empty where there is none."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        if name.endswith(compression):
            return Path(name.removesuffix(compression)).suffix, compression
    return Path(name).suffix, ""


Batch = tuple[Sequence[int], Sequence[Record]]
"""The ``numbers`` and ``records`` of a chunk."""


def read_chunks(
    source: int,
    path: Path,
    raw: HashedFile,
    selection: Selection,
    encoding: str = UTF_8,
    otherwise: str | None = None,
) -> Iterator[Chunk]:
    """Yield the chunks of one input, in file order; at the end ``raw`` has been read whole.

    Args:
        source: index of the input, passed on.
        path: the input.
        raw: the same file, opened; closed at the end.
        selection: the fields that are read, of tables and Parquet.
        otherwise: the kind of a file whose suffix does not tell it.
        encoding: of the text, as ``encodings.known`` names it; Parquet has its own.

    Raises:
        PrepareError: the compressed stream is broken, or the Parquet file or a JSON array is, or
            the file begins with the byte order mark of another encoding.
    """
    kind = kind_of(path, otherwise)
    if kind == "parquet":
        for rows, cells, position in split_parquet(path, selection):
            yield Chunk(source, str(path), kind, rows, cells, position)
        raw.drain()
        return
    stream: io.BufferedReader = io.BufferedReader(raw, CHUNK_BYTES)
    compression = _suffixes(path)[1]
    is_empty = not stream.peek(1)
    if compression:
        # The outer buffer splits lines in C, which these do not.
        stream = io.BufferedReader(_decompressed(path, stream, compression), CHUNK_BYTES)
    try:
        if compression and is_empty:  # of nothing, a compressed stream has some bytes
            raise EOFError("the file is empty")
        check_mark(path, stream.peek(4)[:4], encoding)
        if encoding != UTF_8:
            recoded: Any = Recoded(path, stream, encoding)
            stream = io.BufferedReader(recoded, CHUNK_BYTES)
        for numbers, records in _read(path, kind, stream, selection):
            yield Chunk(source, str(path), kind, numbers, records, raw.position)
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; pyarrow and gzip give none
        raise PrepareError(
            f"{path}: the compressed stream is broken ({error}); fetch the file again or leave it "
            "out"
        ) from error


def _decompressed(path: Path, stream: io.BufferedReader, compression: str) -> Any:
    if compression == ".gz":
        return gzip.GzipFile(fileobj=stream)
    pyarrow, _ = import_pyarrow(path)
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd")


def _read(
    path: Path, kind: Kind, stream: io.BufferedReader, selection: Selection
) -> Iterator[Batch]:
    if kind == "text":
        return _text_chunks(stream)
    if kind in DELIMITERS:
        return _gathered(split_table(path, stream, DELIMITERS[kind], selection))
    if is_array(stream):
        return _gathered(split_array(path, stream))
    return _line_chunks(stream)


def _line_chunks(stream: io.BufferedReader) -> Iterator[Batch]:
    first = 1
    while lines := stream.readlines(CHUNK_BYTES):
        yield range(first, first + len(lines)), list(lines)
        first += len(lines)


def _gathered(found: Iterable[tuple[int, Record]]) -> Iterator[Batch]:
    numbers: list[int] = []
    records: list[Record] = []
    size = 0
    for number, record in found:
        numbers.append(number)
        records.append(record)
        size += sum(map(_size, record if isinstance(record, tuple) else [record]))
        if size >= CHUNK_BYTES:
            yield numbers, records
            numbers, records, size = [], [], 0
    if records:
        yield numbers, records


def _size(cell: bytes | None) -> int:
    return len(cell or b"")


def _text_chunks(stream: io.BufferedReader) -> Iterator[Batch]:
    first = 1
    while piece := stream.read(TEXT_BYTES):
        piece += stream.readline(TEXT_BYTES)
        # A line longer still is cut inside: never within a character, though.
        while (following := stream.peek(1)[:1]) and 0x80 <= following[0] < 0xC0:
            piece += stream.read(1)
        yield [first], [piece]
        first += piece.count(b"\n")
