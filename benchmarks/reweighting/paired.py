"""Differences between treatments, seed by seed, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

Row = Mapping[str, Any]
Measure = Callable[[Row], float]


def mean_loss(row: Row) -> float:
    """Mean of the domains' validation losses: every domain counts the same."""
    return fmean(row["valid"].values())


def worst_loss(row: Row) -> float:
    """The highest of the domains' validation losses."""
    return max(row["valid"].values())


def domain_loss(name: str) -> Measure:
    """The validation loss of one domain."""
    return lambda row: float(row["valid"][name])


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, its standard error (NaN for a single seed), and their number."""

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Of one value for each seed; the deviation is the sample's (n − 1)."""
        count = len(values)
        error = stdev(values) / math.sqrt(count) if count > 1 else math.nan
        return cls(fmean(values), error, count)

    def __str__(self) -> str:
        sign = "−" if self.mean < 0 else "+"
        error = "?" if math.isnan(self.error) else f"{self.error:.4f}"
        return f"{sign}{abs(self.mean):.4f} ± {error}"


def rows_of(rows: Sequence[Row], treatment: str) -> list[Row]:
    """The runs of one treatment, by seed."""
    return sorted((row for row in rows if row["treatment"] == treatment), key=lambda r: r["seed"])


def level(rows: Sequence[Row], treatment: str, measure: Measure) -> Estimate:
    """The measure itself, over the seeds of a treatment."""
    return Estimate.of([measure(row) for row in rows_of(rows, treatment)])


def difference(rows: Sequence[Row], treatment: str, against: str, measure: Measure) -> Estimate:
    """``treatment − against``, paired: the difference is taken within each seed.

    Raises:
        ValueError: the two were not run with the same seeds.
    """
    ours, theirs = rows_of(rows, treatment), rows_of(rows, against)
    seeds = [[row["seed"] for row in part] for part in (ours, theirs)]
    if seeds[0] != seeds[1]:
        raise ValueError(f"{treatment} has seeds {seeds[0]}, {against} has {seeds[1]}")
    return Estimate.of([measure(a) - measure(b) for a, b in zip(ours, theirs, strict=True)])
