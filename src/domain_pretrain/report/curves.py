"""Losses over training on one axis: of one run, of consecutive ones, or of several to compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from domain_pretrain.report.history import History, Mark
from domain_pretrain.report.series import Curve, Floats

XAxis = Literal["tokens", "iterations"]


@dataclass(frozen=True)
class Run:
    """A run on the axis.

    Attributes:
        name: shown with it; may be empty.
        history: what happened in it.
        start: what is added to its own numbers on the axis.
        x: what the axis counts: training tokens of all domains together, or iterations.
    """

    name: str
    history: History
    start: float
    x: XAxis

    @property
    def begin(self) -> float:
        """Where its training begins on the axis."""
        return self.start + (0 if self.x == "tokens" else self.history.begin_iteration or 0)

    @property
    def end(self) -> float:
        """Where its training ends on the axis; where it begins, as long as it has no line."""
        history = self.history
        end = history.end_tokens if self.x == "tokens" else float(history.end_iteration)
        return max(self.begin, self.start + end)

    def of(self, curve: Curve) -> Floats:
        """Where a curve of it has its points."""
        return self.start + (curve.tokens if self.x == "tokens" else curve.iteration)

    def at(self, mark: Mark) -> float:
        """Where something happened."""
        return self.start + (mark.tokens if self.x == "tokens" else mark.event.iteration)


def place(named: Sequence[tuple[str, History]], x: XAxis, *, compare: bool) -> list[Run]:
    """Runs one after the other; to compare, each from the same start."""
    runs: list[Run] = []
    for name, history in named:
        run = Run(name, history, 0.0, x)
        if runs and not compare:
            run = replace(run, start=runs[-1].end - run.begin)
        runs.append(run)
    return runs


def domains_of(runs: Sequence[Run]) -> list[str]:
    """All domains, in the order of the first run that has them."""
    return list(dict.fromkeys(name for run in runs for name in run.history.domains))


def moving_average(values: Floats, window: int) -> Floats:
    """Centred mean of the finite values in ``window``; shorter at both ends; NaN where none is."""
    places = np.arange(len(values))
    # As many to the left as to the right, or the ends of a slope would be bent.
    reach = np.minimum(window // 2, np.minimum(places, places[::-1]))
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(finite)])
    low, high = places - reach, places + reach + 1
    count = counts[high] - counts[low]
    with np.errstate(invalid="ignore"):
        return np.where(count, (sums[high] - sums[low]) / count, np.nan)
