"""Text files → one Megatron dataset: ``prepare()``."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from domain_pretrain.prepare.encode import Encoder, encode_chunks
from domain_pretrain.prepare.encodings import UTF_8, known
from domain_pretrain.prepare.errors import BadLine, PrepareError
from domain_pretrain.prepare.manifest import InputFile, Manifest
from domain_pretrain.prepare.output import CorpusWriter
from domain_pretrain.prepare.quality import QualityMeter
from domain_pretrain.prepare.readers import (
    KINDS,
    Chunk,
    HashedFile,
    check_parquet,
    has_kind,
    kind_of,
    read_chunks,
)
from domain_pretrain.prepare.tokenize import Tokenizer, load_tokenizer
from domain_pretrain.version import __version__

BAD_LINES_KEPT = 20
"""Bad lines that are named in the manifest; all are counted."""

BAD_LINES_TOLD = 3
"""Bad lines that the refusal of an input tells."""

MAX_BAD = 0.01
"""Share of bad lines up to which an input is used."""

BYTES_PER_WORKER = 8 << 20
"""Input that is worth a process of its own."""


def prepare(
    inputs: Sequence[str | Path],
    prefix: str | Path,
    tokenizer: str | Tokenizer,
    *,
    text_key: str = "text",
    append_eod: bool = True,
    eod_token: str | None = None,
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
        prefix: path of the output without suffix.
        tokenizer: ``bytes``, a ``tokenizer.json`` or its folder, or a :class:`Tokenizer`.
        text_key: JSON key or column of the text.
        append_eod: end every document with the end-of-document token.
        eod_token: Hugging Face only: that token; default: the folder's ``eos_token``.
        encoding: of the inputs, except Parquet, which has its own.
        kind: of files whose suffix does not tell it: ``jsonl``, ``txt``, ``csv``, ...
        workers: processes; default: one per core, fewer for small inputs.
        max_bad: share of bad lines, 0 to 1, up to which an input is used without them.
        strict: the first bad line is an error.
        force: replace an existing corpus, and Megatron's index cache beside it.
        on_progress: called after every chunk with the bytes of the inputs that have been read and
            the manifest so far.
        on_bad_line: called for every bad line, in order.

    Returns:
        The manifest that was written.

    Raises:
        PrepareError: nothing was written; the message says why.
    """
    paths = _resolve(inputs)
    _check_names([*map(str, paths), str(prefix)])
    encoding = known(encoding)
    if not 0 <= max_bad <= 1:
        raise PrepareError(f"max_bad {max_bad}: a share; give 0 to 1")
    writer = CorpusWriter(Path(prefix), force=force)
    for path in paths:
        if kind_of(path, kind) == "cell":
            check_parquet(path, text_key)
    if isinstance(tokenizer, str):
        _check_names([tokenizer])
        tokenizer = load_tokenizer(tokenizer, eod_token)
    if append_eod and tokenizer.eod is None:
        raise PrepareError(
            f"tokenizer {tokenizer.name!r} does not say which token ends a document (no eos_token "
            "in tokenizer_config.json beside it); name it with --eod-token, or --no-append-eod"
        )
    sources = [InputFile(path=str(path), bytes=path.stat().st_size) for path in paths]
    if workers is None:
        workers = _default_workers(sum(source.bytes for source in sources))
    if workers < 1:
        raise PrepareError(f"--workers {workers}: give at least 1")

    first_bad: dict[str, list[str]] = {}
    complete = 0  # inputs that have been read
    offsets = list(accumulate((source.bytes for source in sources), initial=0))
    with writer:
        writer.start(tokenizer.vocab_size)
        encoder = Encoder(tokenizer, text_key, append_eod, writer.dtype.name, encoding)
        manifest = _new_manifest(encoder, writer, sources)
        meter = QualityMeter(tokenizer.vocab_size)
        for encoded in encode_chunks(_read(sources, encoder, kind), encoder, workers):
            for source in sources[complete : encoded.source]:
                _check_share(source, max_bad, first_bad)
            complete = encoded.source
            for bad in encoded.bad:
                if strict:
                    raise PrepareError(f"{bad} (without --strict this line would be left out)")
                if len(manifest.first_bad_lines) < BAD_LINES_KEPT:
                    manifest.first_bad_lines.append(str(bad))
                if len(first_bad.setdefault(bad.path, [])) < BAD_LINES_TOLD:
                    first_bad[bad.path].append(str(bad))
                on_bad_line(bad)
            writer.add(encoded.ids, encoded.lengths)
            meter.add(encoded.ids, encoded.lengths, encoded.digests, encoded.replacements)
            sources[encoded.source].add(encoded.counts)
            manifest.add(encoded.counts)
            on_progress(offsets[encoded.source] + encoded.position, manifest)
        for source in sources[complete:]:
            _check_share(source, max_bad, first_bad)
        if not manifest.documents:
            raise PrepareError(_why_nothing(manifest))
        manifest.quality = meter.result()
        writer.commit(manifest)
    return manifest


def _read(sources: list[InputFile], encoder: Encoder, kind: str | None) -> Iterator[Chunk]:
    """Yield all inputs' chunks in order, noting each input's hash when it has been read whole."""
    for index, source in enumerate(sources):
        path = Path(source.path)
        with HashedFile(path) as raw:
            yield from read_chunks(index, path, raw, encoder.text_key, encoder.encoding, kind)
            source.sha256 = raw.sha256()


def _resolve(inputs: Sequence[str | Path]) -> list[Path]:
    """Files of ``inputs`` in order; those of a pattern or folder are sorted by name."""
    paths: list[Path] = []
    for given in map(str, inputs):
        if os.path.isdir(given):
            below = sorted(glob.glob(f"{glob.escape(given)}/**", recursive=True))
            readable = [Path(path) for path in below if has_kind(Path(path))]
            readable = [path for path in readable if path.is_file()]
            if not readable:
                raise PrepareError(f"{given}: a folder with none of {', '.join(KINDS)} in it")
            paths += readable
            continue
        # A file whose name happens to hold a bracket is that file.
        found = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        files = [Path(path) for path in found if not os.path.isdir(path)]
        if not files:
            raise PrepareError(f"{given}: no such file, and no file matches it as a pattern")
        paths += files
    if not paths:
        raise PrepareError("no input; give text files or patterns of them")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise PrepareError(f"{path}: given twice; its text would count twice")
        seen.add(path.resolve())
    return paths


def _check_names(names: list[str]) -> None:
    """The manifest and the printed flags are text; a file system's names are any bytes."""
    for name in names:
        try:
            name.encode(UTF_8)
        except UnicodeEncodeError as error:
            shown = name.encode(UTF_8, "backslashreplace").decode()
            raise PrepareError(
                f"{shown}: the name is not UTF-8; rename the file or the folder"
            ) from error


def _default_workers(total_bytes: int) -> int:
    # What is not worth the start of a process is done in this one.
    return max(1, min(len(os.sched_getaffinity(0)), total_bytes // BYTES_PER_WORKER))


def _new_manifest(encoder: Encoder, writer: CorpusWriter, sources: list[InputFile]) -> Manifest:
    tokenizer = encoder.tokenizer
    return Manifest(
        tool=f"domain-pretrain {__version__}",
        megatron_core=writer.megatron_core,
        encoding=encoder.encoding,
        tokenizer=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        megatron_flags=tokenizer.megatron_flags(writer.megatron_core),
        vocab_size=tokenizer.vocab_size,
        eod=tokenizer.eod,
        append_eod=encoder.append_eod,
        dtype=writer.dtype.name,
        inputs=sources,
    )


def _check_share(source: InputFile, max_bad: float, first_bad: dict[str, list[str]]) -> None:
    """Each input by itself: one file in the wrong encoding must not hide among a thousand."""
    if source.bad_lines <= max_bad * source.lines:
        return
    share = source.bad_lines / source.lines
    raise PrepareError(
        f"{source.path}: {source.bad_lines:,} of {source.lines:,} lines are bad "
        f"({100 * share:.3g}%, and --max-bad is {100 * max_bad:.3g}%), so nothing was written. "
        "Mend the file, name its encoding with --encoding, or allow more with --max-bad. The first "
        "of them:" + "".join(f"\n  {line}" for line in first_bad[source.path])
    )


def _why_nothing(manifest: Manifest) -> str:
    message = (
        f"no document in {len(manifest.inputs)} input files: "
        f"{manifest.bad_lines} bad lines, {manifest.empty_documents} empty documents"
    )
    if manifest.first_bad_lines:
        message += f"; the first bad line is {manifest.first_bad_lines[0]}"
    return message
