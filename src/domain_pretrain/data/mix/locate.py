"""Where every sample of a run comes from: position → prefix, and sample of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.mix.apportion import (
    Counts,
    changing,
    constant,
    greedy,
    ordered,
    shares_of,
    tally,
)
from domain_pretrain.data.mix.omit import Omission
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.mix.turns import Turns
from domain_pretrain.errors import ConfigError

# Weights and a number of samples → for each sample the prefix, and which of its samples.
BuildBlend = Callable[[Sequence[float], int], tuple[NDArray[np.int16], Counts]]

# The number of a block → samples of every prefix before it, and in it; waits until it is decided.
ReadBlock = Callable[[int], tuple[Counts, Counts]]

# The number of a prefix and documents of it → the windows that hold a token of one of them.
FindWindows = Callable[[int, Sequence[int]], Sequence[int]]

_KEPT = 2  # chunks: a worker reads on, and rarely goes back


T = TypeVar("T")
Order: TypeAlias = tuple[NDArray[np.int16], Counts]  # of :func:`.ordered`


class Place(NamedTuple):
    """Where a sample comes from.

    Attributes:
        prefix: its number in the plan.
        sample: how many samples of the prefix come before it in the stream.
        epoch: of the prefix, from 0.
        window: which of the samples that one epoch of the prefix has.
    """

    prefix: int
    sample: int
    epoch: int
    window: int


class Locator:
    """A stream, place by place; a pure function of what it is made of.

    Args:
        plan: of the stream.
        lengths: samples that one epoch of every prefix has.
        seed: of the shuffles.
        build_blend: for a plan with one blend all along, the host's own order.
        read_block: for a plan of blocks.

    Raises:
        ConfigError: a prefix has less than one sample.
    """

    def __init__(
        self,
        plan: Plan,
        lengths: Sequence[int],
        seed: int,
        build_blend: BuildBlend = greedy,
        read_block: ReadBlock | None = None,
    ) -> None:
        for prefix, length in zip(plan.prefixes, lengths, strict=True):
            if length < 1:
                raise ConfigError(
                    f"mix: {prefix!r} has less than one sample in the training split: give it more "
                    "documents, or take it off the training data"
                )
        self.plan, self.lengths = plan, tuple(lengths)
        self._seed = seed
        self._turns = [Turns(length, seed) for length in lengths]
        length = plan.passed(plan.samples)
        self._way: _Blend | _Chunks | _Decided
        if plan.block is not None:
            assert read_block is not None
            self._way = _Decided(plan.block, read_block)
        elif plan.is_hosts_blend:
            self._way = _Blend(plan.stages[0], lengths, length, build_blend)
        else:
            self._way = _Chunks(plan, lengths, length)
        # Of every prefix, samples that it has given beyond those that this plan would have taken.
        # Where blocks are decided, they say so themselves.
        self._ahead: Counts = np.zeros(len(self.lengths), np.int64)
        if plan.taken and plan.block is None:
            self._ahead = np.array(plan.taken, np.int64) - self._way.before(plan.begin)

    def locate(self, consumed: int) -> Place:
        """The sample that the run reads after ``consumed`` others, 0 ≤ consumed < samples."""
        position = self.plan.position(consumed)
        assert position >= self.plan.begin, "another plan has read it"
        prefix, sample = self._way.find(position)
        sample += int(self._ahead[prefix])
        return Place(prefix, sample, *self._turns[prefix].find(sample))

    def omitting(self, omissions: Sequence[Omission], windows: FindWindows) -> Locator:
        """The same without the windows of documents that are left out.

        Args:
            omissions: one after the other, in place of the plan's own.
            windows: of every prefix, by its number, those that hold a token of documents.

        Raises:
            ConfigError: nothing is left of a prefix.
        """
        found = copy.copy(self)
        found.plan = replace(self.plan, omissions=tuple(omissions))
        found._turns = [Turns(length, self._seed) for length in self.lengths]
        for one in omissions:
            for prefix, (since, numbers) in enumerate(zip(one.since, one.documents, strict=True)):
                gone = windows(prefix, numbers)
                if len(gone) == self.lengths[prefix]:
                    raise ConfigError(
                        f"mix.skip leaves nothing of {self.plan.prefixes[prefix]!r}: each of its "
                        f"{len(gone):,} samples holds a token of the documents; take it off the "
                        "training data"
                    )
                found._turns[prefix].leave_out(since, gone)
        return found

    def left_out(self) -> list[int]:
        """Samples of an epoch of every prefix that are not read, as it is in the end."""
        return [turns.left_out for turns in self._turns]

    def samples_in(self, epochs: int) -> list[int]:
        """Samples of so many epochs of every prefix."""
        return [turns.samples_in(epochs) for turns in self._turns]

    def positions(self, prefix: int, window: int) -> Iterator[int]:
        """Where in the stream the run reads one sample of a prefix, in each of its epochs.

        Args:
            prefix: its number in the plan.
            window: which of the samples that one epoch of the prefix has.
        """
        if isinstance(self._way, _Decided):
            raise ConfigError(
                "the losses decide which samples come (mix.dynamic), so it is not known when one "
                "is read: ask for iterations instead"
            )
        end = self.plan.passed(self.plan.samples)
        first = (self.plan.taken or [0] * len(self.lengths))[prefix]
        ahead = int(self._ahead[prefix])
        given = int(self._way.before(end)[prefix]) + ahead
        for sample in self._turns[prefix].samples_of(window, given):
            if sample < first:
                continue
            position = self._way.place(prefix, sample - ahead)
            if not any(start <= position < stop for start, stop in self.plan.cuts):
                yield position

    def taken(self, consumed: int) -> list[int]:
        """Samples that every prefix is through with, where a run has consumed so many.

        Those that were cut or left out count, so that a prefix goes on from here by its own order
        alone. Where blocks are decided, that of the sample before must still be there.
        """
        given = self.before(self.plan.passed(consumed)).tolist()
        return [turns.passed(count) for turns, count in zip(self._turns, given, strict=True)]

    def reads(self, first: int, stop: int) -> list[Counts]:
        """How often each window of every prefix is read.

        Args:
            first, stop: while the run consumes its samples from the one up to, without, the other.

        Returns:
            For each prefix ``[windows of an epoch]``.
        """
        times = [np.zeros(length, np.int64) for length in self.lengths]
        start, end = self.plan.position(first), self.plan.passed(stop)
        for cut, after in (*self.plan.cuts, (end, end)):
            if start < min(cut, end):
                low, high = self.before(start), self.before(min(cut, end))
                for prefix, own in enumerate(times):
                    self._turns[prefix].count(own, int(low[prefix]), int(high[prefix]))
            start = max(start, after)
        return times

    def before(self, position: int) -> Counts:
        """Samples that every prefix has given before a position that this plan has come to.

        Where blocks are decided, that of the position before must still be there.
        """
        if position <= self.plan.begin:
            return np.array(self.plan.taken or [0] * len(self.lengths), np.int64)
        return self._way.before(position) + self._ahead

    def counts(self) -> list[int]:
        """Samples of every prefix that the run reads; not where they are decided on the way."""
        assert not isinstance(self._way, _Decided)
        assert not self.plan.taken
        total, first = np.zeros(len(self.lengths), np.int64), 0
        end = self.plan.passed(self.plan.samples)
        for start, stop in (*self.plan.cuts, (end, end)):
            if first < min(start, end):
                total += self._way.before(min(start, end)) - self._way.before(first)
            first = stop
        return [int(count) for count in total]


class _Blend:
    """The host's order of one blend."""

    def __init__(
        self, stage: Stage, lengths: Sequence[int], length: int, build_blend: BuildBlend
    ) -> None:
        weights = _normalised(lengths if stage.weights is None else stage.weights)
        if stage.weights is not None:
            weights = _normalised(weights)  # as the host does: once would let ties fall otherwise
        self._live = np.flatnonzero(weights)
        self._prefixes = len(lengths)
        self._index: tuple[NDArray[np.int16], Counts] | None = None
        if len(self._live) > 1:
            self._index = build_blend([weights[index] for index in self._live], length)

    def find(self, position: int) -> tuple[int, int]:
        if self._index is None:
            return int(self._live[0]), position
        return int(self._live[self._index[0][position]]), int(self._index[1][position])

    def place(self, prefix: int, sample: int) -> int:
        if self._index is None:
            return sample
        (live,) = np.flatnonzero(self._live == prefix)
        return int(np.flatnonzero(self._index[0] == live)[sample])

    def before(self, position: int) -> Counts:
        counts = np.zeros(self._prefixes, np.int64)
        if self._index is None:
            counts[self._live[0]] = position
        else:
            counts[self._live] = tally(self._index[0][:position], len(self._live))
        return counts


class _Chunks:
    """Stages in chunks; 8 bytes a prefix and chunk, whatever the number of samples."""

    def __init__(self, plan: Plan, lengths: Sequence[int], length: int) -> None:
        ends, counts = [np.zeros(1, np.int64)], [np.zeros((1, len(lengths)), np.int64)]
        for stage_ends, stage_counts in _stages(plan, length):
            ends.append(ends[-1][-1] + stage_ends[1:])
            counts.append(counts[-1][-1] + stage_counts[1:])
        self._ends, self._counts = np.concatenate(ends), np.concatenate(counts)
        self._orders: dict[int, Order] = {}

    def find(self, position: int) -> tuple[int, int]:
        chunk = int(np.searchsorted(self._ends, position, side="right")) - 1
        prefixes, samples = self._order(chunk)
        place = position - int(self._ends[chunk])
        prefix = int(prefixes[place])
        return prefix, int(samples[place] + self._counts[chunk, prefix])

    def place(self, prefix: int, sample: int) -> int:
        chunk = int(np.searchsorted(self._counts[:, prefix], sample, side="right")) - 1
        prefixes, samples = self._order(chunk)
        wanted = sample - self._counts[chunk, prefix]
        (place,) = np.flatnonzero((prefixes == prefix) & (samples == wanted))
        return int(self._ends[chunk] + place)

    def before(self, position: int) -> Counts:
        chunk = int(np.searchsorted(self._ends, position, side="right")) - 1
        counts: Counts = self._counts[chunk].copy()
        if position > self._ends[chunk]:
            prefixes = self._order(chunk)[0][: position - self._ends[chunk]]
            counts += np.bincount(prefixes, minlength=len(counts))
        return counts

    def _order(self, chunk: int) -> Order:
        if chunk not in self._orders:
            counts = self._counts[chunk + 1] - self._counts[chunk]
            _keep(self._orders, chunk, ordered(counts))
        return self._orders[chunk]


class _Decided:
    """Blocks as they are decided: a function of what each is decided to be."""

    def __init__(self, size: int, read_block: ReadBlock) -> None:
        self._size, self._read = size, read_block
        self._orders: dict[int, tuple[Counts, Order]] = {}

    def find(self, position: int) -> tuple[int, int]:
        place = position % self._size
        start, (prefixes, samples) = self._block(position)
        prefix = int(prefixes[place])
        return prefix, int(samples[place] + start[prefix])

    def before(self, position: int) -> Counts:
        start, (prefixes, _) = self._block(position - 1)
        read = prefixes[: (position - 1) % self._size + 1]
        return start + np.bincount(read, minlength=len(start))

    def _block(self, position: int) -> tuple[Counts, Order]:
        block = position // self._size
        if block not in self._orders:
            start, counts = self._read(block)
            _keep(self._orders, block, (start, ordered(counts)))
        return self._orders[block]


def _keep(kept: dict[int, T], key: int, value: T) -> None:
    """And let the oldest go."""
    if len(kept) >= _KEPT:
        del kept[next(iter(kept))]
    kept[key] = value


def _stages(plan: Plan, length: int) -> Iterator[tuple[Counts, Counts]]:
    """Chunks of every stage, and beyond the last, where cuts make the run read on."""
    before = None
    for stage, start in zip(plan.stages, plan.starts(), strict=True):
        assert stage.weights is not None
        after = shares_of(stage.weights)
        if stage.samples is None:
            yield constant(after, length - start, whole=False)
        elif stage.shape == "constant":
            yield constant(after, stage.samples, whole=True)
        else:
            assert before is not None
            yield changing(before, after, stage.samples, stage.shape)
        before = after
    if stage.samples is not None and start + stage.samples < length:
        yield constant(after, length - start - stage.samples, whole=False)


def _normalised(weights: Sequence[float]) -> list[float]:
    """As the host's ``normalize``, to the bit."""
    values = np.array(weights, np.float64)
    return [float(value) for value in values / np.sum(values)]
