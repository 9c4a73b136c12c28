"""Which window of which prefix a sample of the run is, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.mix.apportion import Counts
from domain_pretrain.data.mix.locate import Locator


class Source:
    """The order of a run's training samples: that of one data set, which Megatron does not blend.

    Samples are told by how many others the run has consumed before. Where parts of the stream are
    cut out, their positions in it run ahead of that.
    """

    def position(self, consumed: int) -> int:
        """Where in the stream the sample lies that comes after ``consumed`` others."""
        return consumed

    def consumed(self, position: int) -> int:
        """Samples that the run consumes before a position of the stream."""
        return position

    def locate(self, consumed: int) -> tuple[int, int]:
        """Of a sample, the prefix and the number of its window."""
        return 0, consumed

    def find(self, prefix: int, window: int) -> Iterator[int]:
        """The samples that are this window."""
        return iter((window,))

    def reads(self, first: int, stop: int, counts: Sequence[int]) -> list[Counts]:
        """How often each window is read.

        Args:
            first, stop: while the run consumes its samples from the one up to, without, the other.
            counts: windows of every prefix.

        Returns:
            For each prefix ``[windows]``.
        """
        return [np.bincount(np.arange(first, stop), minlength=counts[0])]


class HostsBlend(Source):
    """Megatron's own blend.

    Args:
        prefixes: ``[samples]``: of each sample.
        windows: ``[samples]``: of each sample.
    """

    def __init__(self, prefixes: NDArray[Any], windows: NDArray[Any]) -> None:
        self._prefixes, self._windows = prefixes, windows

    def locate(self, consumed: int) -> tuple[int, int]:
        """By its two index files."""
        return int(self._prefixes[consumed]), int(self._windows[consumed])

    def find(self, prefix: int, window: int) -> Iterator[int]:
        """It has each once."""
        found = np.flatnonzero((self._windows == window) & (self._prefixes == prefix))
        return iter(found.tolist())

    def reads(self, first: int, stop: int, counts: Sequence[int]) -> list[Counts]:
        """By its two index files."""
        prefixes, windows = self._prefixes[first:stop], self._windows[first:stop]
        return [
            np.bincount(windows[prefixes == number], minlength=count)
            for number, count in enumerate(counts)
        ]


class Mixed(Source):
    """The plugin's stream."""

    def __init__(self, locator: Locator) -> None:
        self._locator = locator

    def position(self, consumed: int) -> int:
        """Over the cuts."""
        return self._locator.plan.position(consumed)

    def consumed(self, position: int) -> int:
        """Without what is cut."""
        return self._locator.plan.consumed(position)

    def locate(self, consumed: int) -> tuple[int, int]:
        """By the plan."""
        place = self._locator.locate(consumed)
        return place.prefix, place.window

    def find(self, prefix: int, window: int) -> Iterator[int]:
        """It has each once an epoch."""
        return map(self.consumed, self._locator.positions(prefix, window))

    def reads(self, first: int, stop: int, counts: Sequence[int]) -> list[Counts]:
        """By the plan."""
        return self._locator.reads(first, stop)
