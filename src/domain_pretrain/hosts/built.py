"""A run's training data, built again by Megatron's own code.

It finds its index files by a hash of what the run has told, and makes them where they are missing:
so a trace reads the very files that the run reads. No process group, no device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from domain_pretrain.data import already_read
from domain_pretrain.data.already_read import KEY, AlreadyRead, same_digest
from domain_pretrain.data.channels import Channels
from domain_pretrain.data.documents import content_of
from domain_pretrain.data.index import Index
from domain_pretrain.data.mix.apportion import Counts
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import check_files
from domain_pretrain.data.trace.source import HostsBlend, Mixed, Source
from domain_pretrain.data.trace.windows import Span, Windows
from domain_pretrain.errors import ConfigError, UnsupportedError
from domain_pretrain.hosts.reads import Reads, quiet, written
from domain_pretrain.process import notice
from domain_pretrain.records.journal import Block, Start


class Built:
    """A run's training data, built again.

    Args:
        reads: what the run has told.
        start: that told it.
        cache: of index files, in place of the run's own.

    Raises:
        ConfigError: data files are missing, or have changed.
        UnsupportedError: there is no Megatron here.
    """

    def __init__(
        self,
        reads: Reads,
        start: Start,
        cache: Path | None = None,
    ) -> None:
        _check_unchanged(reads, start)
        plan = None
        if reads.plan is not None:
            plan = TypeAdapter(Plan).validate_python(reads.plan)
        with quiet(), _inside(reads.folder):
            before = self.already_read = _already_read(reads)
            self._earlier = [() if before is None else before.of(one) for one in reads.prefixes]
            train = _build(reads, plan, cache, start.blocks, before)
        self._sets = getattr(train, "datasets", [train])
        self._channels = _channels(reads, start)
        self.source: Source = _source(train, plan)
        self.content = lru_cache(1 << 16)(self._content)  # samples share documents

    def windows(self, prefix: int) -> Windows:
        """Of a prefix, by its number in the blend."""
        return Windows.of(self._sets[prefix])

    def earlier(self, prefix: int) -> NDArray[np.int64]:
        """The documents of a prefix that a run before had read, and this one leaves out."""
        return np.asarray(self._earlier[prefix], np.int64)

    def channel(self, prefix: int, document: int) -> str | None:
        """The domain of a document, where a file holds those of several."""
        if prefix not in self._channels:
            return None
        names, numbers = self._channels[prefix]
        return names[int(numbers[document])]

    def tokens(self, prefix: int, span: Span) -> NDArray[Any]:
        """Ids of a part of a document, ``[tokens]``."""
        low = self._sets[prefix].dataset
        # A copy: the host's is a view of a file that it unmaps with the data set.
        return np.array(low.get(span.index, offset=span.first, length=span.tokens))

    def _content(self, prefix: int, document: int) -> str:
        return content_of(self._sets[prefix].dataset.get(document))


def _build(
    reads: Reads,
    plan: Plan | None,
    cache: Path | None,
    blocks: Mapping[int, Block],
    before: AlreadyRead | None,
) -> Any:
    try:
        from megatron.core.datasets.blended_megatron_dataset_builder import (
            BlendedMegatronDatasetBuilder,
        )
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

        from domain_pretrain.hosts import stream
    except ImportError as error:
        raise UnsupportedError(
            f"a trace builds the index of the data with Megatron, which cannot be imported here "
            f"({error}): pip install megatron-core, or name a Megatron-LM checkout: "
            "MEGATRON_LM_PATH=/path/to/Megatron-LM"
        ) from error
    assert reads.data is not None
    given: dict[str, Any] = {
        **reads.data.config,
        # Neither is part of the hash; all is here to be looked at.
        "defer_npy_index_mmap": False,
        "fast_cache_load": False,
        "mmap_bin_files": True,
        "tokenizer": SimpleNamespace(eod=None, pad=None, **reads.data.tokenizer),
        **({} if cache is None else {"path_to_cache": str(cache)}),
    }
    known = {field.name for field in fields(GPTDatasetConfig) if field.init}
    config = GPTDatasetConfig(**{name: given[name] for name in given if name in known})
    builder = BlendedMegatronDatasetBuilder(GPTDataset, reads.data.sizes, lambda: True, config)
    if plan is None:
        return builder.build()[0]
    read_block = partial(_read_block, plan, blocks)
    build = BlendedMegatronDatasetBuilder.build
    built = stream.build(build, builder, plan, read_block, already_read=before)[0]
    built.omit(plan.omissions)
    return built


def _already_read(reads: Reads) -> AlreadyRead | None:
    """What the run leaves out, since one before had read it.

    Raises:
        ConfigError: the file that says so is another one by now.
    """
    told = reads.already_read
    if told is None:
        return None
    found = already_read.load(told.path, {one: Index.read(one) for one in reads.prefixes})
    if not same_digest(told.digest, found.digest):
        raise ConfigError(
            f"{told.path} says something else than when the run read it ({KEY}): put the old file "
            "back"
        )
    return found


def _read_block(plan: Plan, blocks: Mapping[int, Block], number: int) -> tuple[Counts, Counts]:
    """As the stream takes it.

    Raises:
        ConfigError: the journal does not tell it.
    """
    block = blocks.get(number)
    if block is None or not block.counts.keys() == block.starts.keys() == set(plan.prefixes):
        assert plan.block is not None
        raise ConfigError(
            f"the journal does not tell of block {number} of mix.dynamic, from sample "
            f"{number * plan.block:,} on: the losses decide it shortly before it is read"
        )
    starts, counts = (
        np.array([of[prefix] for prefix in plan.prefixes], np.int64)
        for of in (block.starts, block.counts)
    )
    return starts, counts


def _source(train: Any, plan: Plan | None) -> Source:
    if plan is not None:
        return Mixed(train.locator)
    if hasattr(train, "dataset_index"):
        return HostsBlend(train.dataset_index, train.dataset_sample_index)
    return Source()


def _channels(reads: Reads, start: Start) -> dict[int, tuple[tuple[str, ...], NDArray[Any]]]:
    """Of every prefix that has channels: their domains, and the channel of each document.

    Raises:
        ConfigError: they are not there any more, or others.
    """
    found = {}
    for number, names in enumerate(reads.channels):
        if not names:
            continue
        prefix = start.order["data"][0][number][0]
        own = Channels.read(prefix, Index.read(prefix))
        own.check_numbers()
        if tuple(f"{reads.domains[number]}/{name}" for name in own.names) != names:
            raise ConfigError(
                f"{prefix!r} has other channels than the run read: {', '.join(names)}; put the old "
                "files back"
            )
        found[number] = (names, np.load(own.path, mmap_mode="r"))
    return found


def _check_unchanged(reads: Reads, start: Start) -> None:
    """What the run has read must be there still.

    Raises:
        ConfigError: it is not.
    """
    entries = start.order["data"][0] or ()
    found = check_files(prefix for prefix, *_ in entries)
    for (prefix, _, sequences, tokens), then in zip(entries, reads.written, strict=True):
        index = found.get(prefix)
        if index is None or None in (sequences, tokens):
            continue
        if (index.sequences, index.tokens) != (sequences, tokens):
            raise ConfigError(
                f"{prefix!r} has changed since the run read it: {tokens:,} → {index.tokens:,} "
                f"tokens in {sequences:,} → {index.sequences:,} documents; put the old files back"
            )
        now = written(prefix)
        if then is not None and now is not None and now != then:
            notice(
                f"{prefix!r} was written again since the run began (as many documents and tokens): "
                "what the trace shows of it may be other text than the run has read"
            )


@contextmanager
def _inside(folder: str) -> Iterator[None]:
    """In the folder of the run, to which paths may be relative; here, where it is gone."""
    kept = os.getcwd()
    try:
        if os.path.isdir(folder):
            os.chdir(folder)
        yield
    finally:
        os.chdir(kept)
