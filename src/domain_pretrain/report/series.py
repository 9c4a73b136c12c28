"""Many curves over the same points, in bounded memory: buckets that keep every spike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 1024  # buckets; a picture has about as many columns of pixels
LEAST, MOST = 5, 512  # values in a mean at an end of a curve
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mean:
    """A mean of some values.

    Attributes:
        value: NaN where one of them was not finite.
        error: its standard error; None of a single value.
    """

    value: float
    error: float | None


@dataclass(frozen=True)
class Curve:
    """One curve; each array has a number per bucket in which the curve has a value.

    Attributes:
        tokens, iteration: where the bucket ends, on either axis.
        mean, low, high: of its finite values; NaN where there is none.
        broken: how many values were not finite.
    """

    tokens: Floats
    iteration: Floats
    mean: Floats
    low: Floats
    high: Floats
    broken: NDArray[np.int64]


@dataclass(frozen=True)
class Grid:
    """All curves of a series over the same buckets.

    Attributes:
        names: of the curves.
        tokens, iteration: ``[buckets]``: where each ends, on either axis.
        mean, low, high: ``[curves, buckets]``: of finite values; NaN where there is none.
        total: ``[curves, buckets]``: sum of the finite values.
        broken: ``[curves, buckets]``: how many values were not finite.
    """

    names: list[str]
    tokens: Floats
    iteration: Floats
    mean: Floats
    low: Floats
    high: Floats
    total: Floats
    broken: NDArray[np.int64]


class Series:
    """Curves by name. Points are added in order; neighbours are merged when there are too many.

    At most ``limit`` buckets of neighbouring points are kept, each with the least, the greatest and
    the sum of what it holds. Up to ``limit`` points, each has its own. The first and the last
    ``MOST`` values of each curve are kept as they are: a bucket may hold all of a curve.

    Args:
        limit: an even number.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._places: dict[str, int] = {}
        self._limit = limit
        self._width = 1  # points in a full bucket
        self._points = 1  # in the last bucket
        self._used = 0  # buckets
        self._at = np.zeros((limit, 2))
        self._extent: Floats = np.empty((limit, 2, 0))  # low, high
        self._sums: Floats = np.empty((limit, 0))
        self._counts: NDArray[np.int64] = np.empty((limit, 2, 0), dtype=np.int64)  # finite, broken
        self._seen: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # values of each curve
        self._first: Floats = np.empty((MOST, 0))
        self._last: Floats = np.empty((MOST, 0))  # a ring: value n is in row n % MOST

    @property
    def names(self) -> list[str]:
        """In order of first appearance."""
        return list(self._places)

    def __contains__(self, name: str) -> bool:
        """Whether there is a curve of that name."""
        return name in self._places

    def add(self, tokens: float, iteration: int, values: Mapping[str, float]) -> None:
        """Add one point: a value, finite or not, of each curve that has one there."""
        if self._points == self._width:
            if self._used == self._limit:
                self._merge()
            self._used += 1
            self._points = 0
        self._points += 1
        row = self._used - 1
        self._at[row] = tokens, iteration
        places = self._places_of(values)
        given = np.fromiter(values.values(), dtype=np.float64, count=len(values))
        seen = self._seen[places]
        early = seen < MOST
        self._first[seen[early], places[early]] = given[early]
        self._last[seen % MOST, places] = given
        self._seen[places] += 1
        finite = np.isfinite(given)
        self._counts[row, 1, places[~finite]] += 1
        places, given = places[finite], given[finite]
        self._counts[row, 0, places] += 1
        self._sums[row, places] += given
        low, high = self._extent[row]
        low[places] = np.minimum(low[places], given)
        high[places] = np.maximum(high[places], given)

    def curve(self, name: str) -> Curve:
        """The curve of that name, which has a value somewhere."""
        place = self._places[name]
        counts = self._counts[: self._used, :, place]
        there = counts.any(axis=1)
        tokens, iteration = self._at[: self._used][there].T
        finite, broken = counts[there].T
        low, high = self._extent[: self._used, :, place][there].T
        with np.errstate(invalid="ignore"):
            mean = np.where(finite, self._sums[: self._used, place][there] / finite, math.nan)
        nothing = finite == 0
        return Curve(
            tokens,
            iteration,
            mean,
            np.where(nothing, math.nan, low),
            np.where(nothing, math.nan, high),
            broken,
        )

    def grid(self, limit: int) -> Grid:
        """All curves, in at most ``limit`` buckets of neighbours; no extreme is lost."""
        used, curves = self._used, len(self._places)
        # Where each of the new buckets begins; as even as whole buckets allow.
        first = np.linspace(0, used, min(used, limit), endpoint=False).astype(np.int64)
        last = np.append(first[1:], used) - 1
        counts = np.add.reduceat(self._counts[:used, :, :curves], first, axis=0)
        total = np.add.reduceat(self._sums[:used, :curves], first, axis=0).T
        low = np.minimum.reduceat(self._extent[:used, 0, :curves], first, axis=0).T
        high = np.maximum.reduceat(self._extent[:used, 1, :curves], first, axis=0).T
        finite, broken = counts[:, 0].T, counts[:, 1].T
        nothing = finite == 0
        mean = np.where(nothing, math.nan, total / np.maximum(finite, 1))
        tokens, iteration = self._at[last].T
        low, high = (np.where(nothing, math.nan, one) for one in (low, high))
        return Grid(self.names, tokens, iteration, mean, low, high, total, broken)

    def count(self, name: str) -> int:
        """How many values that curve has."""
        return int(self._seen[self._places[name]])

    def first(self, name: str) -> float:
        """The first value of that curve; NaN where it is not finite."""
        return float(self._first[0, self._places[name]])

    def last(self, name: str) -> float:
        """The last value of that curve; NaN where it is not finite."""
        place = self._places[name]
        return float(self._last[(self._seen[place] - 1) % MOST, place])

    def ends(self, name: str, part: float) -> tuple[Mean, Mean]:
        """Means over the first and over the last values of a curve.

        Args:
            name: of the curve.
            part: of its values, at each end; at least ``LEAST``, and at most half and ``MOST``.
        """
        place = self._places[name]
        seen = int(self._seen[place])
        wanted = max(1, min(max(LEAST, math.ceil(part * seen)), seen // 2, MOST))
        last = np.arange(seen - wanted, seen) % MOST
        return _mean(self._first[:wanted, place]), _mean(self._last[last, place])

    def _places_of(self, values: Mapping[str, float]) -> NDArray[np.int64]:
        """Their columns in the arrays; new names get new ones."""
        for name in values:
            self._places.setdefault(name, len(self._places))
        room = self._seen.size
        if room < len(self._places):
            more = max(room, len(self._places) - room)
            empty = (self._limit, 2, more)
            extent = np.broadcast_to([[math.inf], [-math.inf]], empty)
            self._extent = np.concatenate([self._extent, extent], axis=2)
            self._sums = np.pad(self._sums, ((0, 0), (0, more)))
            self._counts = np.concatenate([self._counts, np.zeros(empty, dtype=np.int64)], axis=2)
            self._seen = np.pad(self._seen, (0, more))
            self._first, self._last = (
                np.pad(ends, ((0, 0), (0, more))) for ends in (self._first, self._last)
            )
        places = (self._places[name] for name in values)
        return np.fromiter(places, dtype=np.int64, count=len(values))

    def _merge(self) -> None:
        """Make one bucket of every two; all are full."""
        half = self._limit // 2
        self._at[:half] = self._at[1::2]
        extent, sums, counts = self._extent, self._sums, self._counts
        extent[:half, 0] = np.minimum(extent[::2, 0], extent[1::2, 0])
        extent[:half, 1] = np.maximum(extent[::2, 1], extent[1::2, 1])
        sums[:half] = sums[::2] + sums[1::2]
        counts[:half] = counts[::2] + counts[1::2]
        extent[half:] = [[math.inf], [-math.inf]]
        sums[half:] = 0
        counts[half:] = 0
        self._used, self._width = half, 2 * self._width


def _mean(values: Floats) -> Mean:
    if not np.isfinite(values).all():
        return Mean(math.nan, None)
    error = float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else None
    return Mean(float(values.mean()), error)
