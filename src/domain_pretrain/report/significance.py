"""Whether a difference is more than chance, also among many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL = 0.05  # chance of one false verdict or more in a whole table
_NORMAL = 1000  # draws from which on Student's t is the normal distribution, to four digits


def chance(delta: float, error: float, draws: int) -> float:
    """How likely a difference at least as large is, where there is none: Student's t, two-sided.

    With few draws the standard error is itself uncertain: of five, it is by chance alone that one
    difference in nine is larger than two standard errors; of many, one in twenty-two.

    Args:
        delta: the difference.
        error: its standard error.
        draws: that ``error`` was estimated from, at least 2.
    """
    if not error:
        return float(not delta)
    t, freedom = abs(delta) / error, draws - 1
    if draws > _NORMAL:
        return math.erfc(t / math.sqrt(2))
    # Abramowitz and Stegun, 26.7.3 and 26.7.4: finite sums for whole degrees of freedom.
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - within))


def holm(chances: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which of several differences hold up when all of them are looked at.

    The chance that one or more of them are false is at most ``level``, however they depend on each
    other (Holm, Scandinavian Journal of Statistics 6, 1979). Of one difference it is ``level``
    itself.
    """
    held = [False] * len(chances)
    order = sorted(range(len(chances)), key=lambda at: chances[at])
    for rank, at in enumerate(order):
        if chances[at] > level / (len(chances) - rank):
            break
        held[at] = True
    return held
