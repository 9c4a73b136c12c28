"""The static front: what any constant blend reaches, and how far from it something else is.

A run ends with a loss of general, and one of the targets (the mean of code and maths). More general
text in the blend trades one for the other, so a run is compared with the constant blend that ends
at *the same general loss*: that is read from a curve through the seed's own static runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from arms import TARGETS
from scipy.interpolate import PchipInterpolator
from scipy.stats import t as student

CLOSE = 0.005  # nats: with a bound below this, something is as good as the best static blend
LEAST = 5  # seeds, for a verdict

Losses = Mapping[str, float]
Point = tuple[float, float]


def point(test: Losses, base: Losses) -> Point:
    """(how far general has risen above the base, mean loss of the targets), in nats."""
    return test["general"] - base["general"], fmean(test[name] for name in TARGETS)


def at(front: Sequence[Point], risen: float) -> float:
    """The front's target loss there; NaN where no static run of the seed is on one of the sides.

    The curve is monotone between its points (PCHIP), so it adds no dip of its own; chords would
    lie above a front that is convex, and flatter whatever is compared with it.
    """
    rising = sorted(dict(front).items())
    if len(rising) < 2 or not rising[0][0] <= risen <= rising[-1][0]:
        return math.nan
    return float(PchipInterpolator(*zip(*rising, strict=True))(risen))


def distance(one: Point, fronts: Iterable[Sequence[Point]]) -> float:
    """Of a run from the best of its seed's fronts, at equal general loss; below 0 is better.

    Args:
        one: the run; one that is a point of a front is compared with the curve without it.
        fronts: one for each learning rate.
    """
    found = (at([other for other in front if other != one], one[0]) for front in fronts)
    return one[1] - min((here for here in found if not math.isnan(here)), default=math.nan)


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and its 95 % interval (Student's t).

    Infinitely wide for one seed; the mean is NaN where one of the values is.
    """

    mean: float
    half: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of one value for each seed; the deviation is the sample's (n − 1)."""
        count = len(values)
        if count < 2 or any(map(math.isnan, values)):
            return cls(fmean(values) if count else math.nan, math.inf, count)
        half = float(student.ppf(0.975, count - 1)) * stdev(values) / math.sqrt(count)
        return cls(fmean(values), half, count)

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "outside of the front"
        sign = "−" if self.mean < 0 else "+"
        half = f" ± {self.half:.4f}" if math.isfinite(self.half) else ""
        return f"{sign}{abs(self.mean):.4f}{half}"


def tolerance(epsilon: float) -> float:
    """Nats that a run may end beside its ε."""
    return max(0.1 * epsilon, 0.01)


def verdict(found: Estimate) -> str:
    """What may be said of a distance from the front."""
    if found.count < LEAST or math.isnan(found.mean):
        return "none yet" if found.count < LEAST else "cannot be compared"
    if found.high < 0:
        return "beats every static blend"
    if found.high <= CLOSE:
        return f"as good, within {CLOSE}"
    return "worse than the static blend" if found.low > 0 else "not told apart"
