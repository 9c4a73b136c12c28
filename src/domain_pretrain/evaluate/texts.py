"""Held-out texts: out of files as ``domain-pretrain prepare`` reads them, and of data prefixes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.index import Index
from domain_pretrain.data.prefixes import did_you_mean_prefix, expand
from domain_pretrain.errors import ConfigError
from domain_pretrain.prepare.encode import Target, documents
from domain_pretrain.prepare.errors import BadLine, PrepareError
from domain_pretrain.prepare.inputs import resolve
from domain_pretrain.prepare.layout import Folder
from domain_pretrain.prepare.manifest import Manifest, manifest_path
from domain_pretrain.prepare.parquet import check_parquet
from domain_pretrain.prepare.readers import HashedFile, kind_of, read_chunks
from domain_pretrain.prepare.record import Selection, select
from domain_pretrain.prepare.tokenize import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Text:
    """One document.

    Attributes:
        name: ``FILE:LINE``, from 1, or ``PREFIX:NUMBER``, from 0 as ``trace`` counts; its own.
        content: not empty.
        size: UTF-8 bytes of it.
    """

    name: str
    content: str
    size: int

    @classmethod
    def of(cls, name: str, content: str) -> Text:
        """With its size.

        Raises:
            ConfigError: JSON can spell half of a surrogate pair, which is no character.
        """
        try:
            return cls(name, content, len(content.encode("utf-8")))
        except UnicodeEncodeError as error:
            raise ConfigError(f"{name}: the text is not Unicode: {error.reason}") from error


def read_texts(
    places: Sequence[str], count: int, text_key: str | None = None, tokenizer: str | None = None
) -> list[Text]:
    """The texts of some files and prefixes; where they are more than ``count``, so many.

    Which, a hash of their place in the order of the texts decides: they lie all over the files, and
    are the same for every model, tokenizer and blend. Further texts behind the others push a few
    of them out, and change nothing else.

    Args:
        places: files, folders or patterns, as ``prepare`` takes them, or data prefixes or patterns
            of them.
        count: at most.
        text_key: the field of the text in JSON and in tables; None: ``text``.
        tokenizer: that has made the prefixes, by ``prepare``'s names; None: their manifests say it.

    Returns:
        In the order of the places; empty texts are none.

    Raises:
        ConfigError: a place is not there or given twice, cannot be read, or has a line that
            cannot; or a prefix's tokenizer is not known, not there, or another.
    """
    try:
        selection = select(text_key)
        found = nsmallest(count, _ranked(_sources(places), count, selection, tokenizer))
    except PrepareError as error:
        raise ConfigError(_in_our_words(str(error))) from error
    return [text for _, _, text in sorted(found, key=itemgetter(1)) if text.content]


def held_out_of(folder: str) -> dict[str, list[str]]:
    """By domain, the prefixes of what ``prepare --by --holdout`` has cut off.

    Raises:
        ConfigError: the folder is none of its, or nothing was held out.
    """
    layout = Folder(Path(folder), force=False)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for dataset in Manifest.read(Path(folder) / Folder.MANIFEST).datasets:
        if dataset.held_out and dataset.domain is not None and dataset.value is not None:
            found[dataset.domain].append(layout.prefix(Target(dataset.value, held_out=True)))
    if not found:
        raise ConfigError(
            f"{folder}: its {Folder.MANIFEST} tells of no domain of which documents were held out; "
            "prepare it with --by and --holdout"
        )
    return dict(found)


def _in_our_words(message: str) -> str:
    message = message.replace("--text-key", "text_key")
    if "--" in message:
        message += " (of domain-pretrain prepare: make a data prefix by it, and give that)"
    return message


def _sources(places: Sequence[str]) -> list[Path | str]:
    """Files, as paths, and prefixes, as strings."""
    found: list[Path | str] = []
    for place in places:
        prefixes = [prefix for prefix in expand(place) if os.path.isfile(f"{prefix}.idx")]
        if not prefixes and next(Path(place).rglob("*.idx"), None):
            raise ConfigError(
                f"{place}: a folder with data prefixes in it: name them, as in {place}/*.holdout, "
                f"or give holdout: {place}"
            )
        try:
            # Megatron keeps its caches in a folder of the prefix's name.
            found += prefixes or resolve([place])
        except PrepareError as error:
            raise PrepareError(f"{error}{did_you_mean_prefix(place)}") from error
    seen: set[str] = set()
    for source in found:
        real = os.path.realpath(source)
        if real in seen:
            raise ConfigError(f"{source}: given twice; its texts would count twice")
        seen.add(real)
    return found


Ranked = tuple[int, int, Text]
"""The rank of a text, its place among all, itself."""


def _ranked(
    sources: Sequence[Path | str], count: int, selection: Selection, tokenizer: str | None
) -> Iterator[Ranked]:
    """All texts of files; of a prefix, the ``count`` of the lowest ranks."""
    first = 0
    for source in sources:
        if isinstance(source, str):
            index = Index.read(source)
            ranks = _ranks(first, index.sequences)
            lowest = np.argsort(ranks)[:count].tolist()
            for number, text in zip(lowest, _of_prefix(index, lowest, tokenizer), strict=True):
                yield int(ranks[number]), first + number, text
            first += index.sequences
        else:
            for texts in _of_file(source, selection):
                ranks = _ranks(first, len(texts))
                yield from zip(ranks.tolist(), range(first, first + len(texts)), texts, strict=True)
                first += len(texts)


def _ranks(first: int, count: int) -> NDArray[np.uint64]:
    """A hash of each place from ``first`` on, no two alike: SplitMix64 (Steele et al., 2014)."""
    mixed = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def _of_file(path: Path, selection: Selection) -> Iterator[list[Text]]:
    """The texts of each chunk, without empty ones."""
    if kind_of(path) == "parquet":
        check_parquet(path, selection)
    number = 0
    with HashedFile(path) as raw:
        for chunk in read_chunks(0, path, raw, selection):
            texts = []
            for found in documents(chunk, selection):
                if isinstance(found, BadLine):
                    raise ConfigError(
                        f"{found}: mend or remove the line; text_key says where the text is "
                        f"({selection.fields[0]!r})"
                    )
                # Elements of an array may share a line.
                number = max(found.line, number + 1)
                if found.text:
                    texts.append(Text.of(f"{path}:{number}", found.text))
            yield texts


def _of_prefix(index: Index, numbers: Sequence[int], name: str | None) -> Iterator[Text]:
    """The texts of some documents, without what the tokenizer has put around them."""
    index.check_lengths()
    tokenizer, end = _tokenizer(index.prefix, name)
    around = _without_end(np.asarray(tokenizer.encode(""), np.int64), end)
    for number in numbers:
        ids = _without_end(index.document(number).astype(np.int64), end)
        if ids.size and not 0 <= ids.min() <= ids.max() < tokenizer.vocab_size:
            raise ConfigError(
                f"{index.prefix}: document {number} has ids from {ids.min()} to {ids.max()}, and "
                f"the tokenizer {tokenizer.name} has {tokenizer.vocab_size:,}: it was made by "
                "another; name that one, as tokenizer"
            )
        if around.size and np.array_equal(ids[: around.size], around):
            ids = ids[around.size :]
        yield Text.of(f"{index.prefix}:{number}", tokenizer.decode(ids.tolist()))


def _without_end(ids: NDArray[Any], end: int | None) -> NDArray[Any]:
    return ids[:-1] if ids.size and ids[-1] == end else ids


def _tokenizer(prefix: str, name: str | None) -> tuple[Tokenizer, int | None]:
    """The one that has made the ids, and the id that ends a document.

    Text is what any model can be asked about: the model's own tokenizer encodes it anew.
    """
    manifest = Manifest.load(prefix) if manifest_path(prefix).is_file() else None
    if name is None and manifest is not None:
        name = manifest.tokenizer
    if name is None:
        raise ConfigError(
            f"{prefix}: no manifest of domain-pretrain prepare says which tokenizer has made it: "
            "name it, as tokenizer, or give the files of text"
        )
    try:
        tokenizer = load_tokenizer(name)
    except PrepareError as error:
        raise ConfigError(f"{prefix}: {error}; name its place, as tokenizer") from error
    if manifest is None:
        return tokenizer, tokenizer.eod
    if manifest.tokenizer_sha256 != tokenizer.sha256:
        raise ConfigError(
            f"{prefix}: was made by the tokenizer {manifest.tokenizer}, and {name} is not what it "
            "was then (sha256): name the one that made it, as tokenizer, or give the files of text"
        )
    return tokenizer, manifest.eod
