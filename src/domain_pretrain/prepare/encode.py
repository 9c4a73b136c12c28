"""Chunks → token ids, in this process or in several, in the order of the chunks."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process

import numpy as np

from domain_pretrain.prepare.encodings import UTF_8
from domain_pretrain.prepare.errors import BadLine, PrepareError
from domain_pretrain.prepare.manifest import Counts
from domain_pretrain.prepare.quality import digest
from domain_pretrain.prepare.readers import DELIMITERS, Chunk
from domain_pretrain.prepare.tokenize import Tokenizer


@dataclass
class Encoded:
    """The documents of one chunk.

    Attributes:
        source: index of the input.
        position: bytes of it that were read up to here.
        ids: all documents' token ids, one after another, in the corpus's dtype.
        lengths: ids of each document, end-of-document token included; their sum is ``len(ids)``.
        counts: what the chunk gave.
        bad: the lines left out.
        digests: of each document's text; see ``quality``.
        replacements: characters U+FFFD in the texts.
    """

    source: int
    position: int
    ids: np.ndarray
    lengths: list[int] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)
    bad: list[BadLine] = field(default_factory=list)
    digests: list[int] = field(default_factory=list)
    replacements: int = 0


@dataclass(frozen=True)
class Encoder:
    """Turns a chunk into token ids.

    ``dtype`` is the name of a numpy dtype; ``encoding`` that of the files, for messages: the
    records of a chunk are UTF-8.
    """

    tokenizer: Tokenizer
    text_key: str
    append_eod: bool
    dtype: str
    encoding: str = UTF_8

    def __call__(self, chunk: Chunk) -> Encoded:
        """Decode, tokenize and count the records of ``chunk``."""
        dtype = np.dtype(self.dtype)
        eod = np.array([self.tokenizer.eod] if self.append_eod else [], dtype=dtype)
        parts: list[np.ndarray] = [np.empty(0, dtype)]
        result = Encoded(chunk.source, chunk.position, parts[0])
        for item in documents(chunk, self.text_key, self.encoding):
            result.counts.lines += chunk.kind != "text"
            if isinstance(item, BadLine):
                result.bad.append(item)
                continue
            line, text = item
            try:
                raw = text.encode(UTF_8)
                ids = np.asarray(self.tokenizer.encode(text) if text else [], dtype=dtype)
                if len(ids) and not 0 <= ids.min() <= ids.max() < self.tokenizer.vocab_size:
                    raise ValueError(f"an id outside 0 ... {self.tokenizer.vocab_size - 1}")
            except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
                result.bad.append(BadLine(chunk.path, line, f"text is not Unicode: {error.reason}"))
                continue
            except Exception as error:  # tokenizers raises nothing narrower
                result.bad.append(BadLine(chunk.path, line, f"tokenizer failed: {error}"))
                continue
            if not len(ids):
                result.counts.empty_documents += 1
                continue
            if self.append_eod and ids[-1] == eod:
                ids = ids[:-1]  # some tokenizers end a text themselves: one end is enough
            parts += (ids, eod)
            result.lengths.append(len(ids) + len(eod))
            result.counts.text_bytes += len(raw)
            result.digests.append(digest(raw))
            result.replacements += text.count("\ufffd")
        if chunk.kind == "text":
            result.counts.lines = sum(_count_lines(record) for record in chunk.records if record)
        result.ids = np.concatenate(parts)
        result.counts.documents = len(result.lengths)
        result.counts.tokens = len(result.ids)
        result.counts.bad_lines = len(result.bad)
        return result


def documents(
    chunk: Chunk, text_key: str, encoding: str = UTF_8
) -> Iterator[tuple[int, str] | BadLine]:
    """Yield the (line, text) of every document of ``chunk``, or what is wrong with the line."""
    if chunk.kind == "text":
        yield from _text_document(chunk, encoding)
        return
    for line, record in zip(chunk.numbers, chunk.records, strict=True):
        try:
            if chunk.kind == "cell":
                yield line, _cell(record)
            elif chunk.kind in DELIMITERS:
                if record is None:
                    raise ValueError("not as many cells as the first line")
                yield line, _decode(record, 0, encoding)
            elif record is not None and record.strip():
                yield line, _json_text(_decode(record, line, encoding), text_key)
        except ValueError as error:
            yield BadLine(chunk.path, line, str(error))


def _text_document(chunk: Chunk, encoding: str) -> Iterator[tuple[int, str] | BadLine]:
    """One document; a line that is not text is left out of it."""
    (record,), (first,) = chunk.records, chunk.numbers
    assert record is not None
    try:
        yield first, _decode(record, first, encoding)
    except ValueError:
        good = []
        for line, raw in enumerate(_lines(record), start=first):
            try:
                good.append(_decode(raw, line, encoding))
            except ValueError as error:
                yield BadLine(chunk.path, line, str(error))
        yield first, "".join(good)


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


def _json_text(line: str, text_key: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise ValueError(f"not a JSON object or string but {type(value).__name__}")
    if text_key not in value:
        raise ValueError(f"no key {text_key!r} among {', '.join(map(repr, list(value)[:8]))}")
    text = value[text_key]
    if not isinstance(text, str):
        raise ValueError(f"{text_key!r} is {type(text).__name__}, not a string")
    return text


def _cell(record: bytes | None) -> str:
    if record is None:
        raise ValueError("null")
    try:
        return record.decode(UTF_8)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from error


def encode_chunks(chunks: Iterable[Chunk], encoder: Encoder, workers: int) -> Iterator[Encoded]:
    """Encode ``chunks`` in ``workers`` processes; results come in the order of the chunks.

    At most four chunks per worker are in flight, so memory does not grow with the input.

    Raises:
        PrepareError: a worker died.
    """
    if workers == 1:
        yield from map(encoder, chunks)
        return
    # spawn: a fork of a process that has started threads (torch, tokenizers) can deadlock.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (encoder,))
    pending: deque[Future[Encoded]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_encode, chunk))
            if len(pending) >= 4 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise PrepareError(
            "a worker process died (out of memory? try fewer --workers; a script of your own "
            "must call prepare() under `if __name__ == '__main__':`)"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_encoder: Encoder


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core per worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the pool
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A parent killed by SIGKILL cannot end its workers, and they would wait for work forever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _encode(chunk: Chunk) -> Encoded:
    return _encoder(chunk)
