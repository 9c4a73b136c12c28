"""Text files → Megatron datasets: ``prepare()``."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from domain_pretrain.prepare.datasets import Datasets
from domain_pretrain.prepare.encode import Digester, Digests, Encoder
from domain_pretrain.prepare.encodings import UTF_8, known
from domain_pretrain.prepare.errors import BadLine, PrepareError
from domain_pretrain.prepare.holdout import NO_CUT, Cut, Holdout, parse_holdout
from domain_pretrain.prepare.inputs import check_names, resolve
from domain_pretrain.prepare.layout import Folder, Layout, OnePrefix
from domain_pretrain.prepare.manifest import InputFile, Manifest
from domain_pretrain.prepare.output import MegatronFormat
from domain_pretrain.prepare.parquet import check_parquet
from domain_pretrain.prepare.publish import Publication
from domain_pretrain.prepare.readers import Chunk, HashedFile, kind_of, read_chunks
from domain_pretrain.prepare.reading import Reading
from domain_pretrain.prepare.record import Selection, select
from domain_pretrain.prepare.tokenize import Tokenizer, load_tokenizer
from domain_pretrain.prepare.workers import map_chunks
from domain_pretrain.version import __version__

MAX_BAD = 0.01
"""Share of bad lines up to which an input is used."""

BYTES_PER_WORKER = 8 << 20
"""Input that is worth a process of its own."""


def prepare(
    inputs: Sequence[str | Path],
    prefix: str | Path,
    tokenizer: str | Tokenizer,
    *,
    text_key: str | None = None,
    template: str | None = None,
    by: str | None = None,
    channel_key: str | None = None,
    holdout: str | None = None,
    append_eod: bool = True,
    eod_token: str | None = None,
    literal_special_tokens: bool = False,
    encoding: str = UTF_8,
    kind: str | None = None,
    workers: int | None = None,
    max_bad: float = MAX_BAD,
    strict: bool = False,
    force: bool = False,
    on_progress: Callable[[int, Manifest], None] = lambda read, manifest: None,
    on_bad_line: Callable[[BadLine], None] = lambda bad: None,
) -> Manifest:
    """Make ``PREFIX.bin``, ``PREFIX.idx`` and ``PREFIX.manifest.json`` from text files.

    The output does not depend on ``workers``. It appears whole or not at all.

    Args:
        inputs: files, folders, or glob patterns (``**`` included), in the order of the corpus.
        prefix: path of the output without suffix; with ``by``, of a folder.
        tokenizer: ``bytes``, a ``tokenizer.json`` or its folder, a sentencepiece model, or a
            :class:`Tokenizer`.
        text_key: JSON key, dotted path or column of the text; default: ``text``.
        template: in its place: text around such fields in braces.
        by: field whose value chooses the dataset, ``PREFIX/VALUE``.
        channel_key: field whose value names the document's channel: numbers of all documents'
            channels are in ``PREFIX.channels.npy``, names in the manifest.
        holdout: share (``1%``) or number (``500``) of every dataset's documents that go to another
            beside it, ``.holdout``.
        append_eod: end every document with the end-of-document token.
        eod_token: that token, of a tokenizer from files; default: its own.
        literal_special_tokens: where a text spells a special token, it is text.
        encoding: of the inputs, except Parquet, which has its own.
        kind: of files whose suffix does not tell it: ``jsonl``, ``txt``, ``csv``, ...
        workers: processes; default: one per core, fewer for small inputs.
        max_bad: share of bad lines, 0 to 1, up to which an input is used without them.
        strict: the first bad line is an error.
        force: replace an existing corpus, and Megatron's index cache beside it.
        on_progress: called after every chunk with the bytes of the inputs that have been read and
            the manifest so far. Where documents are to be numbered for ``holdout``, the inputs are
            read twice.
        on_bad_line: called for every bad line, in order.

    Returns:
        The manifest that was written, of the whole run.

    Raises:
        DomainPretrainError: nothing was written; the message says why.
    """
    selection = select(text_key, template, by, channel_key)
    asked = None if holdout is None else parse_holdout(holdout)
    paths = resolve(inputs)
    check_names([*map(str, paths), str(prefix)])
    fields = [name for name in (text_key, template, by, channel_key) if name]
    check_names(fields, "JSON and Parquet are UTF-8")
    encoding = known(encoding)
    if not 0 <= max_bad <= 1:
        raise PrepareError(f"max_bad {max_bad}: a share; give 0 to 1")
    layout: Layout
    if by is None:
        layout = OnePrefix(Path(prefix), force=force, holdout=asked is not None)
    else:
        layout = Folder(Path(prefix), force=force)
    publication = Publication(layout.stage, layout.final, layout.check)
    _check_kinds(paths, kind, selection)
    tokenizer = _loaded(tokenizer, eod_token, literal_special_tokens, append_eod)
    sources = [InputFile(path=str(path), bytes=path.stat().st_size) for path in paths]
    if workers is None:
        workers = _default_workers(sum(source.bytes for source in sources))
    if workers < 1:
        raise PrepareError(f"--workers {workers}: give at least 1")

    with publication:
        megatron = MegatronFormat(tokenizer.vocab_size)
        manifest = Manifest(
            tool=f"domain-pretrain {__version__}",
            megatron_core=megatron.version,
            encoding=encoding,
            text_key=selection.fields[0] if selection.plain else None,
            template=template,
            by=by,
            channel_key=channel_key,
            holdout=holdout,
            tokenizer=tokenizer.name,
            tokenizer_sha256=tokenizer.sha256,
            literal_special_tokens=literal_special_tokens,
            megatron_flags=tokenizer.megatron_flags(megatron.version),
            vocab_size=tokenizer.vocab_size,
            eod=tokenizer.eod,
            append_eod=append_eod,
            dtype=megatron.dtype.name,
            inputs=sources,
        )
        reading = Reading(
            manifest, max_bad=max_bad, strict=strict, progress=on_progress, bad_line=on_bad_line
        )

        def chunks() -> Iterator[Chunk]:
            return _read(sources, selection, encoding, kind)

        cut = NO_CUT
        if asked is not None:
            cut = _cut(asked, map_chunks(chunks(), Digester(selection, encoding), workers), reading)
        encoder = Encoder(tokenizer, selection, append_eod, megatron.dtype.name, encoding, cut)
        with Datasets(layout, megatron, tokenizer.vocab_size, selection) as datasets:
            for encoded in map_chunks(chunks(), encoder, workers):
                reading.take(encoded)
                for target, documents in encoded.documents.items():
                    datasets.add(target, documents)
            reading.finish()
            datasets.finish(manifest)
        publication.commit(layout.forget)
    return manifest


def _loaded(
    tokenizer: str | Tokenizer, eod_token: str | None, literal: bool, append_eod: bool
) -> Tokenizer:
    if isinstance(tokenizer, str):
        check_names([tokenizer])
        tokenizer = load_tokenizer(tokenizer, eod_token, literal)
    elif literal:
        raise PrepareError("literal_special_tokens: a tokenizer of your own has to do that itself")
    if append_eod and tokenizer.eod is None:
        raise PrepareError(
            f"tokenizer {tokenizer.name!r} does not say which token ends a document (a model "
            "without an end, or no eos_token in tokenizer_config.json beside it); name it with "
            "--eod-token, or --no-append-eod"
        )
    return tokenizer


def _check_kinds(paths: Sequence[Path], kind: str | None, selection: Selection) -> None:
    for path in paths:
        found = kind_of(path, kind)
        if found == "parquet":
            check_parquet(path, selection)
        if found == "text" and selection.needs_fields is not None:
            raise PrepareError(
                f"{path}: a text file is one document and has no fields for "
                f"{selection.needs_fields}; leave it out, or make JSON lines of it"
            )


def _read(
    sources: list[InputFile], selection: Selection, encoding: str, kind: str | None
) -> Iterator[Chunk]:
    """Yield all inputs' chunks in order, noting each input's hash when it has been read whole."""
    for index, source in enumerate(sources):
        path = Path(source.path)
        with HashedFile(path) as raw:
            yield from read_chunks(index, path, raw, selection, encoding, kind)
            if source.sha256 not in ("", raw.sha256()):
                raise PrepareError(
                    f"{path}: has changed between two readings, which a number of documents for "
                    "--holdout takes; run this again, or give a share if it is a pipe"
                )
            source.sha256 = raw.sha256()


def _cut(asked: Holdout, chunks: Iterator[Digests], reading: Reading) -> Cut:
    """What is held out; for a number of documents, all inputs are read for it."""
    if asked.share is not None:
        return asked.share_cut()
    found: defaultdict[str, list[np.ndarray]] = defaultdict(list)
    for chunk in chunks:
        for value, digests in chunk.digests.items():
            found[value].append(digests)
        reading.tell(chunk.source, chunk.position)
    return asked.count_cut({value: np.concatenate(parts) for value, parts in found.items()})


def _default_workers(total_bytes: int) -> int:
    # What is not worth the start of a process is done in this one.
    return max(1, min(len(os.sched_getaffinity(0)), total_bytes // BYTES_PER_WORKER))
