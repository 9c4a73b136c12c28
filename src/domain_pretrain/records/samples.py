"""A fixed validation set, counted sample by sample: what its means are worth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from domain_pretrain.records.score import Part, Score
from domain_pretrain.stats import SCALE, Average, Column, DomainStats

# What a mean is made of; counts stay whole, and sums are in nats for each of their units.
_TERMS = {
    "token": (Column.LOSS, Column.TOKENS),
    "sample": (Column.SAMPLE_LOSS, Column.SAMPLES),
}


@dataclass(frozen=True)
class Samples:
    """The sums of every sample of an evaluation; identical on all ranks.

    Attributes:
        names: the D domain names.
        domains: domain index of each of the n samples.
        sums: int64 ``[n + 1, len(Column)]``, fixed point by :data:`.SCALE`; the last row is of no
            sample of the set.
    """

    names: tuple[str, ...]
    domains: tuple[int, ...]
    sums: np.ndarray

    def stats(self) -> DomainStats:
        """The sums by domain: integers, so they are those that counting by domain gives."""
        sums = np.zeros((len(self.names) + 1, self.sums.shape[1]), np.int64)
        np.add.at(sums, [*self.domains, len(self.names)], self.sums)
        return DomainStats(self.names, sums)

    def score(self, name: str, average: Average = "token") -> Score | None:
        """The mean loss of a domain with its samples as parts; None if a token is not finite, or
        none is there. Counts are tokens, or, of fractional masks, in a unit that keeps them whole.
        """
        rows = self._of_domains[self.names.index(name)]
        if rows[:, Column.NONFINITE].any():
            return None
        value, count = _TERMS[average]
        whole = math.gcd(SCALE[count], *rows[:, count].tolist())
        unit = SCALE[value] / SCALE[count] * whole
        sums, counts = rows[:, value] / unit, rows[:, count] // whole
        numbers = zip(sums.tolist(), counts.tolist(), strict=True)
        return load([*numbers], name)

    @cached_property
    def _of_domains(self) -> list[np.ndarray]:
        """Of each domain, the sums of its samples, in the order of the set."""
        domains = np.array(self.domains, np.int64)
        order = np.argsort(domains, kind="stable")
        ends = np.bincount(domains, minlength=len(self.names)).cumsum()
        return np.split(self.sums[order], ends[:-1])

    def errors(self, average: Average = "token") -> Mapping[str, float]:
        """Standard error of each domain's mean, nats; of those that it can be told of."""
        scores = {name: self.score(name, average) for name in self.names}
        found = {name: score.error for name, score in scores.items() if score is not None}
        return {name: error for name, error in found.items() if error is not None}


def dump(score: Score) -> list[tuple[float, int]]:
    """For a checkpoint: some 25 bytes a sample."""
    return [(part.sum, part.count) for part in score.parts]


def load(parts: list[Any], name: str) -> Score | None:
    """The inverse."""
    named = [Part(str(number), *part) for number, part in enumerate(parts)]
    return Score.of("loss", name, named, higher_is_better=False)
