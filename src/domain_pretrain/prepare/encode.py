"""Chunks → token ids, sorted into the datasets of the run."""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from domain_pretrain.prepare.channels import Channels
from domain_pretrain.prepare.encodings import UTF_8
from domain_pretrain.prepare.errors import BadLine
from domain_pretrain.prepare.holdout import NO_CUT, Cut
from domain_pretrain.prepare.manifest import Counts
from domain_pretrain.prepare.quality import digest
from domain_pretrain.prepare.readers import Chunk
from domain_pretrain.prepare.record import Document, Selection
from domain_pretrain.prepare.tokenize import Tokenizer
from domain_pretrain.prepare.traces import TraceFinder, Traces


class Target(NamedTuple):
    """One of a run's datasets: the value of ``--by`` ("" without), for training or held out."""

    value: str = ""
    held_out: bool = False


@dataclass
class Documents:
    """The documents of one chunk that go to one dataset.

    Attributes:
        ids: all documents' token ids, one after another, in the corpus's dtype.
        lengths: ids of each document, end-of-document token included; their sum is ``len(ids)``.
        digests: of each document's text; see ``quality``.
        text_bytes: of all texts in UTF-8.
        channels: of each document; of none where no field names them.
        traces: of junk in the texts.
    """

    ids: np.ndarray
    lengths: list[int] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    text_bytes: int = 0
    channels: Channels = field(default_factory=Channels)
    traces: Traces = field(default_factory=Traces)

    @property
    def counts(self) -> Counts:
        """As a manifest counts them."""
        return Counts(documents=len(self.lengths), tokens=len(self.ids), text_bytes=self.text_bytes)


@dataclass
class Encoded:
    """What one chunk gave.

    Attributes:
        source: index of the input.
        position: bytes of it that were read up to here.
        documents: by dataset; only those with a document.
        counts: of lines, empty documents and bad lines.
        bad: the lines left out.
    """

    source: int
    position: int
    documents: dict[Target, Documents] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    bad: list[BadLine] = field(default_factory=list)


@dataclass(frozen=True)
class Encoder:
    """Turns a chunk into token ids.

    ``dtype`` is the name of a numpy dtype; ``encoding`` that of the files, for messages: the
    records of a chunk are UTF-8.
    """

    tokenizer: Tokenizer
    selection: Selection
    append_eod: bool
    dtype: str
    encoding: str = UTF_8
    cut: Cut = NO_CUT

    def __call__(self, chunk: Chunk) -> Encoded:
        """Decode, tokenize and count the records of ``chunk``."""
        eod = np.array([self.tokenizer.eod] if self.append_eod else [], dtype=self.dtype)
        parts: defaultdict[Target, list[np.ndarray]] = defaultdict(list)
        finder = TraceFinder(special_tokens(self.tokenizer))
        result = Encoded(chunk.source, chunk.position)
        for item in documents(chunk, self.selection, self.encoding):
            result.counts.lines += chunk.kind != "text"
            if isinstance(item, BadLine):
                result.bad.append(item)
                continue
            line, text, value, channel = item
            try:
                raw, ids = self._encoded(text)
            except ValueError as error:
                result.bad.append(BadLine(chunk.path, line, str(error)))
                continue
            if not len(ids):
                result.counts.empty_documents += 1
                continue
            if self.append_eod and ids[-1] == eod:
                ids = ids[:-1]  # some tokenizers end a text themselves: one end is enough
            key = digest(raw)
            target = Target(value, self.cut.holds(value, key))
            parts[target] += (ids, eod)
            found = result.documents.setdefault(target, Documents(ids))
            found.lengths.append(len(ids) + len(eod))
            found.digests.append(key)
            found.text_bytes += len(raw)
            if channel:
                found.channels.note(channel, len(ids) + len(eod), len(raw))
            finder.look(text, found.traces)
        for target, found in result.documents.items():
            found.ids = np.concatenate(parts[target])
        if chunk.kind == "text":
            result.counts.lines = sum(
                _count_lines(record) for record in chunk.records if isinstance(record, bytes)
            )
        result.counts.bad_lines = len(result.bad)
        return result

    def _encoded(self, text: str) -> tuple[bytes, np.ndarray]:
        """UTF-8 of ``text``, and its ids.

        Raises:
            ValueError: it has none; says why.
        """
        try:
            raw = text.encode(UTF_8)
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise ValueError(f"text is not Unicode: {error.reason}") from error
        try:
            ids = np.asarray(self.tokenizer.encode(text) if text else [], dtype=self.dtype)
            if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
                raise ValueError(f"an id outside 0 ... {self.tokenizer.vocab_size - 1}")
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"tokenizer failed: {error}") from error
        return raw, ids


@dataclass
class Digests:
    """The digests of a chunk's texts, by the value of ``--by``; uint64."""

    source: int
    position: int
    digests: dict[str, np.ndarray]


@dataclass(frozen=True)
class Digester:
    """Reads a chunk as :class:`Encoder` does, for the digests alone."""

    selection: Selection
    encoding: str = UTF_8

    def __call__(self, chunk: Chunk) -> Digests:
        """Decode and hash the records of ``chunk``; bad ones are left for the encoder to name."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for item in documents(chunk, self.selection, self.encoding):
            if isinstance(item, Document) and item.text:
                with contextlib.suppress(UnicodeEncodeError):
                    found[item.value].append(digest(item.text.encode(UTF_8)))
        arrays = {value: np.array(digests, np.uint64) for value, digests in found.items()}
        return Digests(chunk.source, chunk.position, arrays)


def special_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Of ``tokenizer``; one of a user's own, of before there was this attribute, names none."""
    return tuple(getattr(tokenizer, "special_tokens", ()))


def documents(
    chunk: Chunk, selection: Selection, encoding: str = UTF_8
) -> Iterator[Document | BadLine]:
    """Yield every document of ``chunk``, or what is wrong with the line."""
    if chunk.kind == "text":
        yield from _text_document(chunk, encoding)
        return
    for line, record in zip(chunk.numbers, chunk.records, strict=True):
        try:
            if isinstance(record, bytes):
                if record.strip():
                    yield Document(line, *selection.of_line(_decode(record, line, encoding)))
            elif record is None:
                raise ValueError("not as many cells as the first line")
            else:
                cells = [
                    cell if cell is None else _cell(cell, chunk.kind, encoding) for cell in record
                ]
                yield Document(line, *selection.of_row(cells))
        except ValueError as error:
            yield BadLine(chunk.path, line, str(error))


def _text_document(chunk: Chunk, encoding: str) -> Iterator[Document | BadLine]:
    """One document; a line that is not text is left out of it."""
    (record,), (first,) = chunk.records, chunk.numbers
    assert isinstance(record, bytes)
    try:
        yield Document(first, _decode(record, first, encoding))
    except ValueError:
        good = []
        for line, raw in enumerate(_lines(record), start=first):
            try:
                good.append(_decode(raw, line, encoding))
            except ValueError as error:
                yield BadLine(chunk.path, line, str(error))
        yield Document(first, "".join(good))


def _lines(record: bytes) -> list[bytes]:
    return io.BytesIO(record).readlines()  # splitlines() would cut at more than \n


def _count_lines(record: bytes) -> int:
    return record.count(b"\n") + (not record.endswith(b"\n"))


def _decode(record: bytes, line: int, encoding: str) -> str:
    """Text of ``record``, without the byte order mark that some editors put at a file's head.

    Raises:
        ValueError: it was not ``encoding``; or a NUL is in it, which no text has, but UTF-16 does
            for whoever takes it for UTF-8.
    """
    if b"\0" in record:
        raise ValueError(f"a NUL byte at byte {record.index(0)}: not text, or not {encoding}")
    try:
        return record.decode("utf-8-sig" if line == 1 else UTF_8)
    except UnicodeDecodeError as error:
        if encoding != UTF_8:  # the position is one in the recoded line
            raise ValueError(f"not {encoding}") from error
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def _cell(cell: bytes, kind: str, encoding: str) -> str:
    if kind != "parquet":
        return _decode(cell, 0, encoding)
    try:
        return cell.decode(UTF_8)  # a NUL in it is Parquet's own
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error
