"""What an evaluation says of a domain, as a sum and a count, with its standard error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What one document, sentence or question has in a score.

    Attributes:
        name: the same at every evaluation of the same thing: ``heldout/finance.jsonl:12``.
        sum: of its measured values.
        count: how many they are; may be 0.
    """

    name: str
    sum: float
    count: int


@dataclass(frozen=True)
class Score:
    """One number of one domain; the division comes last, so that parts can be added up.

    Attributes:
        name: what was measured, part of a tag: ``completion``.
        domain: what it was measured on.
        sum: of the measured values.
        count: how many they are; at least 1: without any there is no score.
        higher_is_better: whether a larger mean is a better model.
        parts: what they consist of, one for each independent draw: sums and counts of the parts
            are those of the score. Empty: not told, and there is no standard error.
    """

    name: str
    domain: str
    sum: float
    count: int
    higher_is_better: bool
    parts: tuple[Part, ...] = ()

    @classmethod
    def of(
        cls, name: str, domain: str, parts: Sequence[Part], *, higher_is_better: bool
    ) -> Score | None:
        """The score that some parts add up to; None where they count nothing."""
        count = sum(part.count for part in parts)
        if not count:
            return None
        total = math.fsum(part.sum for part in parts)
        return cls(name, domain, total, count, higher_is_better, tuple(parts))

    @property
    def mean(self) -> float:
        """``sum / count``."""
        return self.sum / self.count

    @property
    def error(self) -> float | None:
        """Standard error of the mean over draws of the parts; None of fewer than two.

        Of a ratio ``r = Σ sum / Σ count``, linearised (Cochran, Sampling Techniques, 1977, 6.4):
        ``√(n/(n−1) · Σ (sum_i − r·count_i)²) / Σ count``.
        """
        return _spread(list(self._residuals().values()))

    def _residuals(self) -> dict[tuple[str, int], float]:
        """How much each part moves the mean, by its name; of several of one name, by their order.

        Two questions may be asked alike.
        """
        mean, seen = self.mean, Counter[str]()
        found = {}
        for part in self.parts:
            found[part.name, seen[part.name]] = (part.sum - mean * part.count) / self.count
            seen[part.name] += 1
        return found


def difference(before: Score, after: Score) -> tuple[float, float | None]:
    """``after.mean − before.mean`` of one thing measured twice, and its standard error.

    Where both were measured on the same parts, what makes a part hard for both models cancels out:
    the error is that of the paired differences. Otherwise it is of two independent draws; None
    where one of them has none.
    """
    delta = after.mean - before.mean
    old, new = before._residuals(), after._residuals()
    if old.keys() == new.keys():
        return delta, _spread([new[name] - old[name] for name in new])
    if before.error is None or after.error is None:
        return delta, None
    return delta, math.hypot(before.error, after.error)


def _spread(residuals: list[float]) -> float | None:
    """``√(n/(n−1) · Σ r²)``, of residuals that sum to 0."""
    n = len(residuals)
    return None if n < 2 else math.sqrt(n / (n - 1) * math.fsum(r * r for r in residuals))
