"""A prefix's samples in turn: epoch after epoch, without the windows that are left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.mix.permutation import permuted, restored

_NONE = np.zeros(0, np.int64)


class _Rule(NamedTuple):
    """Windows that are left out from some turn on.

    Attributes:
        since: the first sample that comes by it.
        turn: its first turn, counted through all epochs with what is left out.
        kept: turns before that which it would have kept, had it held from the start.
        windows: that it leaves out, ascending.
    """

    since: int
    turn: int
    kept: int
    windows: NDArray[Any]


class Turns:
    """Sample of a prefix → epoch, and window of it.

    In each epoch every window has a turn; the samples are those turns whose window is not left out.
    What is left out may change on the way: from some sample on, not for those before it.

    Args:
        length: windows of an epoch.
        seed: of the shuffles of later epochs.
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length, self._seed = length, seed
        self._rules = [_Rule(0, 0, 0, _NONE)]
        self._gaps: tuple[int, int, NDArray[Any]] = (0, 0, _NONE)

    def leave_out(self, since: int, windows: Sequence[int]) -> None:
        """From a sample on, these windows and no others; one at least stays."""
        gone = np.unique(np.array(windows, np.int64))
        assert len(gone) < self._length
        turn = self.passed(since)
        self._rules.append(_Rule(since, turn, 0, gone))
        self._rules[-1] = _Rule(since, turn, turn - self._gone(len(self._rules) - 1, turn), gone)

    @property
    def left_out(self) -> int:
        """Windows of an epoch that do not come, as it is in the end."""
        return len(self._rules[-1].windows)

    def find(self, sample: int) -> tuple[int, int]:
        """Epoch and window of a sample."""
        epoch, place = divmod(self._turn(sample), self._length)
        # The first epoch is in the host's order.
        return epoch, permuted(place, self._length, self._seed, epoch) if epoch else place

    def samples_in(self, epochs: int) -> int:
        """Samples of so many epochs."""
        return self._number(epochs * self._length)

    def samples_of(self, window: int, stop: int) -> Iterator[int]:
        """The samples that are a window, below ``stop``, ascending: at most one an epoch."""
        for epoch in count():
            if self.samples_in(epoch) >= stop:
                return
            turn = epoch * self._length + self._place(window, epoch)
            rule = self._rules[self._rule_at(turn)]
            if window not in rule.windows and (sample := self._number(turn)) < stop:
                yield sample

    def passed(self, samples: int) -> int:
        """Turns that so many samples are through with, those of left out windows among them."""
        return self._turn(samples - 1) + 1 if samples else 0

    def count(self, times: NDArray[np.int64], first: int, stop: int) -> None:
        """Add the samples from ``first`` up to, without, ``stop`` to those of each window.

        Args:
            times: ``[length]``; changed in place.
            first, stop: of the prefix's samples.
        """
        ends = [*(rule.since for rule in self._rules[1:]), stop]
        for rule, end in zip(self._rules, ends, strict=True):
            begin, end = max(first, rule.since), min(stop, end)
            if begin < end:
                own = self._taken(self._turn(begin), self._turn(end - 1) + 1)
                own[rule.windows] = 0
                times += own

    def _taken(self, low: int, high: int) -> NDArray[np.int64]:
        """How many turns each window has from one up to, without, another; ``[length]``."""
        length = self._length
        times = np.zeros(length, np.int64)
        for epoch in range(low // length, -(-high // length)):
            first, stop = max(low - epoch * length, 0), min(high - epoch * length, length)
            if stop - first == length:
                times += 1
            elif not epoch:
                times[first:stop] += 1
            else:
                for place in range(first, stop):
                    times[permuted(place, length, self._seed, epoch)] += 1
        return times

    def _turn(self, sample: int) -> int:
        """Which turn a sample has."""
        number = max(n for n, rule in enumerate(self._rules) if rule.since <= sample)
        rule = self._rules[number]
        each = self._length - len(rule.windows)
        epoch, place = divmod(rule.kept + sample - rule.since, each)
        gaps = self._gaps_in(number, epoch)
        before = np.searchsorted(gaps - np.arange(len(gaps)), place, side="right")
        return epoch * self._length + place + int(before)

    def _number(self, turn: int) -> int:
        """How many samples come before a turn."""
        number = self._rule_at(turn)
        rule = self._rules[number]
        return rule.since + turn - self._gone(number, turn) - rule.kept

    def _rule_at(self, turn: int) -> int:
        return max(n for n, rule in enumerate(self._rules) if rule.turn <= turn)

    def _gone(self, number: int, turn: int) -> int:
        """Turns before this one that a rule leaves out, if it holds from the start."""
        epoch, place = divmod(turn, self._length)
        gaps = self._gaps_in(number, epoch)
        return epoch * len(gaps) + int(np.searchsorted(gaps, place))

    def _gaps_in(self, number: int, epoch: int) -> NDArray[Any]:
        """Where in an epoch the turns are that a rule leaves out, ascending; the last is kept."""
        windows = self._rules[number].windows
        if not epoch or not len(windows):
            return windows
        if self._gaps[:2] != (number, epoch):
            places = np.sort([self._place(window, epoch) for window in windows.tolist()])
            self._gaps = (number, epoch, places)
        return self._gaps[2]

    def _place(self, window: int, epoch: int) -> int:
        return restored(window, self._length, self._seed, epoch) if epoch else window
