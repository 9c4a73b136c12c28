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
from domain_pretrain.prepare.tables import check_column, split_table

Kind = Literal["json", "text", "csv", "tsv", "cell"]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "cell",
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
            ``csv``, ``tsv``: a cell; ``cell``: a Parquet cell.
        numbers: of every record's first line (Parquet: row), from 1.
        records: UTF-8, or what claims to be; None for a cell that is not there.
        position: bytes of the input file read so far, compressed as it is on disk.
    """

    source: int
    path: str
    kind: Kind
    numbers: Sequence[int]
    records: list[bytes | None]
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
    if kind == "cell" and compression:
        raise PrepareError(f"{path}: Parquet compresses by itself; unpack it to .parquet")
    return kind


def _suffixes(path: Path) -> tuple[str, str]:
    """Suffix of the kind and of the compression; empty where there is none."""
    for compression in COMPRESSIONS:
        if path.name.endswith(compression):
            return Path(path.name.removesuffix(compression)).suffix, compression
    return path.suffix, ""


Batch = tuple[Sequence[int], list[bytes | None]]
"""The ``numbers`` and ``records`` of a chunk."""


def read_chunks(
    source: int,
    path: Path,
    raw: HashedFile,
    text_key: str,
    encoding: str = UTF_8,
    otherwise: str | None = None,
) -> Iterator[Chunk]:
    """Yield the chunks of one input, in file order; at the end ``raw`` has been read whole.

    Args:
        source: index of the input, passed on.
        path: the input.
        raw: the same file, opened; closed at the end.
        text_key: the column that holds the text.
        otherwise: the kind of a file whose suffix does not tell it.
        encoding: of the text, as ``encodings.known`` names it; Parquet has its own.

    Raises:
        PrepareError: the compressed stream is broken, or the Parquet file or a JSON array is, or
            the file begins with the byte order mark of another encoding.
    """
    kind = kind_of(path, otherwise)
    if kind == "cell":
        yield from _parquet_chunks(source, path, text_key)
        raw.drain()
        return
    stream: io.BufferedReader = io.BufferedReader(raw, CHUNK_BYTES)
    compression = _suffixes(path)[1]
    if compression:
        # The outer buffer splits lines in C, which these do not.
        stream = io.BufferedReader(_decompressed(path, stream, compression), CHUNK_BYTES)
    try:
        check_mark(path, stream.peek(4)[:4], encoding)
        if encoding != UTF_8:
            recoded: Any = Recoded(path, stream, encoding)
            stream = io.BufferedReader(recoded, CHUNK_BYTES)
        for numbers, records in _read(path, kind, stream, text_key):
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
    pyarrow, _ = _import_pyarrow(path)
    return pyarrow.CompressedInputStream(pyarrow.PythonFile(stream, "r"), "zstd")


def _read(path: Path, kind: Kind, stream: io.BufferedReader, text_key: str) -> Iterator[Batch]:
    if kind == "text":
        return _text_chunks(stream)
    if kind in DELIMITERS:
        return _gathered(split_table(path, stream, DELIMITERS[kind], text_key))
    if is_array(stream):
        return _gathered(split_array(path, stream))
    return _line_chunks(stream)


def _line_chunks(stream: io.BufferedReader) -> Iterator[Batch]:
    first = 1
    while lines := stream.readlines(CHUNK_BYTES):
        yield range(first, first + len(lines)), list(lines)
        first += len(lines)


def _gathered(found: Iterable[tuple[int, bytes | None]]) -> Iterator[Batch]:
    numbers: list[int] = []
    records: list[bytes | None] = []
    size = 0
    for number, record in found:
        numbers.append(number)
        records.append(record)
        size += len(record or b"")
        if size >= CHUNK_BYTES:
            yield numbers, records
            numbers, records, size = [], [], 0
    if records:
        yield numbers, records


def _text_chunks(stream: io.BufferedReader) -> Iterator[Batch]:
    first = 1
    while piece := stream.read(TEXT_BYTES):
        piece += stream.readline(TEXT_BYTES)
        # A line longer still is cut inside: never within a character, though.
        while (following := stream.peek(1)[:1]) and 0x80 <= following[0] < 0xC0:
            piece += stream.read(1)
        yield [first], [piece]
        first += piece.count(b"\n")


def _parquet_chunks(source: int, path: Path, text_key: str) -> Iterator[Chunk]:
    pyarrow, parquet = _import_pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            size, rows, row = path.stat().st_size, max(1, file.metadata.num_rows), 1
            for batch in file.iter_batches(batch_size=512, columns=[text_key]):
                # As binary, so that one cell of invalid UTF-8 is one bad row and not an exception.
                cells = batch.column(0).cast(pyarrow.large_binary()).to_pylist()
                position = size * (row - 1 + len(cells)) // rows
                numbers = range(row, row + len(cells))
                yield Chunk(source, str(path), "cell", numbers, cells, position)
                row += len(cells)
    except (pyarrow.ArrowException, OSError) as error:
        raise PrepareError(f"{path}: cannot be read as Parquet: {error}") from error


def check_parquet(path: Path, text_key: str) -> None:
    """Check that ``path`` holds a column ``text_key`` of strings.

    Raises:
        PrepareError: pyarrow is missing, the file is broken, or the column is absent, no string
            or there twice.
    """
    pyarrow, parquet = _import_pyarrow(path)
    try:
        schema = parquet.read_schema(path)
        names = schema.names
    except UnicodeDecodeError as error:
        raise PrepareError(
            f"{path}: the name of a column is not UTF-8 ({error.object!r}); rename the column"
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise PrepareError(f"{path}: cannot be read as Parquet: {error}") from error
    check_column(path, names, text_key)
    kind = schema.field(text_key).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
        raise PrepareError(f"{path}: column {text_key!r} is {kind}, not a string")


def _import_pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PrepareError(
            f"{path}: reading Parquet or .zst needs pyarrow; pip install 'domain-pretrain[prepare]'"
        ) from error
    return pyarrow, pyarrow.parquet
