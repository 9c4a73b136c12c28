"""How far a number is from where it was heading: a robust score, for every domain at once.

Of a domain's last 16 losses, a line through the medians (Theil–Sen) tells where the next was
heading: a loss that falls is no anomaly. Where a loss has just come to another level, the line
tilts for a while, so the median of the last 9 is taken if it is nearer. The scatter comes from the
differences between neighbours, each over the samples that it rests on: else a domain with two
samples a window would alarm all the time. Medians all along: what is far off does not spoil the
measure of the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 64  # windows of a domain
LINE = 16  # of them, that the line goes through
PLAIN = 9  # of them, that the plain median is of
GRACE = 32  # windows before a domain has a score
_TO_DEVIATION = 1.4826  # of a median of absolute values, for a normal distribution
# Of a line through 16 points, one step further on: its variance, in that of a point.
_LINE_ERROR = 0.3
LEAST = 1e-3  # nats: no series is smoother

_Array = NDArray[np.float64]
_EARLIER, _LATER = np.triu_indices(LINE, k=1)


@dataclass(frozen=True)
class Score:
    """Where a domain's loss is, and where it was heading.

    Attributes:
        loss: nats, of this window.
        expected: nats.
        z: the difference, in standard deviations of a window with as many samples.
    """

    loss: float
    expected: float
    z: float

    @property
    def change(self) -> float:
        """Nats beyond what was expected."""
        return self.loss - self.expected


class Scores:
    """The last values of some series, by name; the same on every rank.

    Args:
        names: of the series.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._rows = {name: row for row, name in enumerate(names)}
        # The newest on the right; NaN: not seen yet.
        self._values = np.full((len(names), KEPT), np.nan)
        self._samples = np.full((len(names), KEPT), np.nan)
        self._seen = np.zeros(len(names), np.int64)  # of KEPT, how many there are

    def score(self, values: Mapping[str, tuple[float, float]]) -> dict[str, Score]:
        """Score the next value of some series, and take it in.

        Args:
            values: finite, each with the samples that it is a mean of.

        Returns:
            Of those that have been seen often enough.
        """
        if not values:
            return {}
        rows = np.array([self._rows[name] for name in values])
        value, samples = np.array(list(values.values()), np.float64).T
        ready = self._seen[rows] >= GRACE
        scored = self._score(rows[ready], value[ready], np.maximum(samples[ready], 1.0))
        names = [name for name, known in zip(values, ready, strict=True) if known]
        for history, new in ((self._values, value), (self._samples, np.maximum(samples, 1.0))):
            history[rows] = np.concatenate([history[rows, 1:], new[:, None]], axis=1)
        self._seen[rows] = np.minimum(self._seen[rows] + 1, KEPT)
        return dict(zip(names, scored, strict=True))

    def noise(self) -> dict[str, float]:
        """The standard deviation of one sample, of the series that have been seen often enough."""
        rows = np.flatnonzero(self._seen >= GRACE)
        found = dict(zip(rows.tolist(), self._deviation(rows).tolist(), strict=True))
        return {name: found[row] for name, row in self._rows.items() if row in found}

    def _score(self, rows: NDArray[np.int64], value: _Array, samples: _Array) -> list[Score]:
        if not len(rows):
            return []
        recent, time = self._values[rows, -LINE:], np.arange(LINE, dtype=np.float64)
        slopes = (recent[:, _LATER] - recent[:, _EARLIER]) / (time[_LATER] - time[_EARLIER])
        slope = np.median(slopes, axis=1)
        level = np.median(recent - slope[:, None] * time, axis=1)
        line = level + slope * LINE
        plain = np.median(self._values[rows, -PLAIN:], axis=1)
        nearer = np.abs(value - line) < np.abs(value - plain)
        expected = np.where(nearer, line, plain)
        usual = np.median(self._samples[rows, -LINE:], axis=1)
        one = self._deviation(rows)
        deviation = one * np.sqrt(1.0 / samples + _LINE_ERROR / usual)
        z = (value - expected) / np.maximum(deviation, LEAST)
        return [Score(*row) for row in np.stack([value, expected, z], axis=1).tolist()]

    def _deviation(self, rows: NDArray[np.int64]) -> _Array:
        """``[rows]``: of one sample's value, from the differences between windows."""
        values, samples = self._values[rows], self._samples[rows]
        weight = 1.0 / samples
        steps = np.diff(values, axis=1) / np.sqrt(weight[:, 1:] + weight[:, :-1])
        # Sorted, the NaN are at the end.
        ordered, count = np.sort(np.abs(steps), axis=1), self._seen[rows] - 1
        row = np.arange(len(rows))
        middle = (ordered[row, (count - 1) // 2] + ordered[row, count // 2]) / 2
        found: _Array = _TO_DEVIATION * middle
        return found

    def state_dict(self) -> dict[str, Any]:
        """By name, the values and their samples, oldest first; without those never seen."""
        return {
            name: [
                of[row, KEPT - self._seen[row] :].tolist() for of in (self._values, self._samples)
            ]
            for name, row in self._rows.items()
            if self._seen[row]
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse; a series that it does not know is as if it had never been seen."""
        self._seen[:] = 0
        self._values[:] = self._samples[:] = np.nan
        for name, (values, samples) in state.items():
            row = self._rows.get(name)
            if row is not None:
                self._seen[row] = len(values)
                self._values[row, KEPT - len(values) :] = values
                self._samples[row, KEPT - len(values) :] = samples
