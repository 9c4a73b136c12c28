"""The plugin's stream on Megatron: in the place of the blend that it makes of the training data.

Each prefix is built as one epoch, whose order depends on the prefix, the split, the seed and the
length of a sample alone. Megatron's own blend shuffles all epochs of a prefix together, so that its
order changes with every weight and with the length of the run.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from domain_pretrain.data.already_read import AlreadyRead
from domain_pretrain.data.mix.apportion import Counts
from domain_pretrain.data.mix.locate import Locator, ReadBlock
from domain_pretrain.data.mix.omit import Omission
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.trace.windows import Windows
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.flow.tap import DATASET_ID
from domain_pretrain.whole_file import whole_file


class Stream(torch.utils.data.Dataset[dict[str, Any]]):
    """What the host's sampler reads: all samples of the run, in the order of training.

    One more than those: the host refuses to start, if only to end at once, where none is left.

    Args:
        built: the host's training data, every prefix once.
        plan: of the stream.
        read_block: see :class:`.Locator`.
    """

    def __init__(self, built: Any, plan: Plan, read_block: ReadBlock | None = None) -> None:
        self.datasets = _sets(built)
        self.config = built.config
        self.split = self.datasets[0].index_split
        self.locator = Locator(
            plan,
            [len(one) for one in self.datasets],
            self.config.random_seed,
            _Cached(self.config.path_to_cache),
            read_block,
        )

    def omit(self, omissions: Sequence[Omission]) -> None:
        """Leave documents out, in place of what the plan says of them.

        Raises:
            ConfigError: nothing is left of a prefix.
        """
        found = {number: Windows.of(self.datasets[number]) for number in _named(omissions)}
        self.locator = self.locator.omitting(
            omissions, lambda number, own: found[number].holding(own) if own else ()
        )

    def __len__(self) -> int:
        return self.locator.plan.samples + 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.locator.locate(min(int(index), self.locator.plan.samples - 1))
        return {DATASET_ID: np.int16(place.prefix), **self.datasets[place.prefix][place.window]}


def build(
    original: Callable[[Any], list[Any]],
    builder: Any,
    plan: Plan,
    read_block: ReadBlock | None = None,
    settle: Callable[[Sequence[int]], Plan] | None = None,
    already_read: AlreadyRead | None = None,
) -> list[Any]:
    """What ``BlendedMegatronDatasetBuilder.build`` returns, with the stream as training data.

    Every rank calls it, as it calls the original.

    Args:
        original: the method.
        builder: whose it is.
        plan: of the stream.
        read_block: see :class:`.Locator`.
        settle: of the samples that one epoch of every prefix has (none on a rank that reads no
            data), gives the plan as this run goes on with it; the same on every rank.
        already_read: documents that the prefixes' windows are not made of.

    Returns:
        The stream, and the host's own validation and test data; None each that is not read here.

    Raises:
        UnsupportedError: the script builds other training data than the flags tell.
    """
    config, sizes = builder.config, builder.sizes
    per_split = config.blend is None
    blend = config.blend_per_split[0] if per_split else config.blend
    found = None if blend is None else tuple(blend[0])
    if found != plan.prefixes or sizes[0] != plan.samples:
        raise UnsupportedError(
            f"mix: the script builds {sizes[0]} training samples of {found}, and the flags tell "
            f"{plan.samples} of {plan.prefixes}: leave mix out, or let the script build what the "
            "flags tell"
        )
    if per_split:
        others = {"blend_per_split": [None, *config.blend_per_split[1:]]}
        part = (0.0, 1.0)
    else:
        others = {"split_matrix": [None, *config.split_matrix[1:]]}
        part = config.split_matrix[0]
    ours = {"blend": (list(blend[0]), None), "blend_per_split": None}
    rest = _build_with(original, builder, sizes, others)
    # Without weights, each prefix is built for one pass, and their blend is as short as can be; one
    # prefix is not blended.
    once = [1 if len(plan.prefixes) > 1 else None, *sizes[1:]]
    if already_read is not None:
        builder = copy.copy(builder)
        builder.cls = _without(builder.cls, already_read)
    (built, *_) = _build_with(original, builder, once, {**ours, "split_matrix": [part, None, None]})
    if settle is not None:
        plan = settle([len(one) for one in _sets(built)])
    stream = None
    if built is not None and _rank() == 0:
        stream = Stream(built, plan, read_block)
    if dist.is_initialized():
        dist.barrier()  # the world, no payload: rank 0 writes the index that the others read
    if built is not None and stream is None:
        stream = Stream(built, plan, read_block)
    return [stream, *rest[1:]]


def settle(
    stream: Stream | None, decide: Callable[[Locator], Sequence[Omission]], epochs: int
) -> tuple[Sequence[Omission], Sequence[int]] | None:
    """Decide what the stream leaves out, and count what is left.

    Every rank calls it. One broadcast from rank 0, which always reads, over the world: a few bytes
    for each prefix and document, once.

    Args:
        stream: None on ranks that read no data.
        decide: what it leaves out; asked on rank 0.
        epochs: that are counted.

    Returns:
        What was decided, and the samples of so many epochs of every prefix, the same on every rank;
        None where rank 0 does not read this model chunk's data.
    """
    found: list[Any] = [None]
    if stream is not None and _rank() == 0:
        omissions = tuple(decide(stream.locator))
        stream.omit(omissions)
        found = [(omissions, stream.locator.samples_in(epochs))]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    if stream is not None and found[0] is not None and _rank() > 0:
        stream.omit(found[0][0])
    return found[0]


def _sets(built: Any) -> list[Any]:
    """Of a blend, those of the prefixes; none where this rank reads nothing."""
    return [] if built is None else list(getattr(built, "datasets", [built]))


def _without(kind: type[Any], already_read: AlreadyRead) -> type[Any]:
    """The host's kind of data set, of the documents that were not read."""

    class Rest(kind):
        def __init__(self, low: Any, path: str, documents: NDArray[Any], *rest: Any) -> None:
            own = already_read.of(path)
            # The host finds index files by the name of the kind, among others: by the documents of
            # this prefix, since those of all may be the same ones of others. A blend has one kind.
            self.__class__ = type(_name(kind, own), (Rest,), {})
            super().__init__(low, path, documents[~np.isin(documents, own)], *rest)
            self.__class__ = Rest

        def __reduce__(self) -> Any:  # for workers that are spawned
            return _blank, (kind, already_read), vars(self)

    return Rest


def _name(kind: type[Any], own: NDArray[np.int64]) -> str:
    digest = hashlib.sha256(own.tobytes()).hexdigest()[:16]
    return f"{kind.__name__}Without{digest}" if len(own) else kind.__name__


def _blank(kind: type[Any], already_read: AlreadyRead) -> Any:
    return object.__new__(_without(kind, already_read))


def _build_with(
    original: Callable[[Any], list[Any]],
    builder: Any,
    sizes: Sequence[int | None],
    changes: dict[str, Any],
) -> list[Any]:
    kept = builder.config, builder.sizes
    builder.config, builder.sizes = copy.copy(builder.config), list(sizes)
    vars(builder.config).update(changes)
    try:
        return original(builder)
    finally:
        builder.config, builder.sizes = kept


class _Cached:
    """The host's ``build_blending_indices``, kept where the host keeps its own index files.

    Args:
        folder: None: nothing is kept, and every process builds its own, as the host does.
    """

    def __init__(self, folder: str | None) -> None:
        self._folder = folder

    def __call__(self, weights: Sequence[float], samples: int) -> tuple[NDArray[np.int16], Counts]:
        if self._folder is None:
            return build_blending_indices(weights, samples)
        told = json.dumps([[weight.hex() for weight in weights], samples])
        name = f"{hashlib.sha256(told.encode()).hexdigest()[:32]}-Stream-train"
        paths = [
            Path(self._folder, f"{name}-{part}.npy")
            for part in ("dataset_index", "dataset_sample_index")
        ]
        if not all(path.is_file() for path in paths):
            prefixes, numbers = build_blending_indices(weights, samples)
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            values: tuple[NDArray[Any], ...] = (prefixes, numbers)
            for path, own in zip(paths, values, strict=True):
                with whole_file(path) as file:
                    np.save(file, own)
            return prefixes, numbers
        return np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r")


def build_blending_indices(
    weights: Sequence[float], samples: int
) -> tuple[NDArray[np.int16], Counts]:
    """By the host, compiled: see :func:`domain_pretrain.data.mix.apportion.greedy`."""
    from megatron.core.datasets import helpers

    prefixes, numbers = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    shares = np.array(weights, np.float64)
    helpers.build_blending_indices(prefixes, numbers, shares, len(shares), samples, False)
    return prefixes, numbers


def _named(omissions: Sequence[Omission]) -> set[int]:
    """The prefixes of which documents are left out, by their numbers."""
    return {n for one in omissions for n, documents in enumerate(one.documents) if documents}


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
