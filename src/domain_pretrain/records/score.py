"""What an evaluation says of a domain, as a sum and a count."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Score:
    """One number of one domain; the division comes last, so that parts can be added up.

    Attributes:
        name: what was measured, part of a tag: ``completion``.
        domain: what it was measured on.
        sum: of the measured values.
        count: how many they are; at least 1: without any there is no score.
        higher_is_better: whether a larger mean is a better model.
    """

    name: str
    domain: str
    sum: float
    count: int
    higher_is_better: bool

    @property
    def mean(self) -> float:
        """``sum / count``."""
        return self.sum / self.count
