"""What a step, or a window of steps, knows of every domain: exact integers until they are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, get_args

import numpy as np

Average = Literal["token", "sample"]
Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


class Column(IntEnum):
    """Columns of the int64 accumulator ``[D + 1, len(Column)]``; row ``D`` collects invalid ids."""

    LOSS = 0  # Σ mask·loss, nats, fixed point
    TOKENS = 1  # Σ mask, fixed point (masks may be fractional)
    SAMPLES = 2  # rows that carry at least one loss token, a plain count
    SAMPLE_LOSS = 3  # Σ over rows of the row's own mean loss, nats, fixed point
    NONFINITE = 4  # tokens whose loss is NaN, infinite or beyond the range, a plain count


SCALE = {
    Column.LOSS: 2**24,
    Column.TOKENS: 2**24,
    Column.SAMPLES: 1,
    # A sample's mean is a sum of terms loss/row_tokens, each rounded to the grid: 2^32 keeps the
    # rounding of a 1M-token row below 2^-13 nats at worst and leaves room for 2^31 nats·samples.
    Column.SAMPLE_LOSS: 2**32,
    Column.NONFINITE: 1,
}


def perplexity(loss: float) -> float:
    """``exp(loss)`` of a loss in nats; infinite where that overflows, NaN of NaN."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class DomainTotals:
    """Sums of one domain. ``tokens`` > 0: a domain without tokens has no ``DomainTotals``."""

    loss_sum: float
    tokens: float
    samples: int
    sample_loss_sum: float
    nonfinite: int

    def loss(self, average: Average = "token") -> float:
        """Mean loss in nats; NaN where a token's loss was not finite."""
        if self.nonfinite:
            return math.nan
        if average == "token":
            return self.loss_sum / self.tokens
        return self.sample_loss_sum / self.samples if self.samples else math.nan

    def ppl(self, average: Average = "token") -> float:
        """Perplexity of the mean loss; see :func:`perplexity`."""
        return perplexity(self.loss(average))


@dataclass(frozen=True)
class DomainStats:
    """Per-domain sums over a step, a logging window or an evaluation.

    Attributes:
        names: the D domain names, in the order of the rows.
        sums: int64 ``[D + 1, len(Column)]``, fixed point by :data:`SCALE`; identical on all ranks.
    """

    names: tuple[str, ...]
    sums: np.ndarray

    def __post_init__(self) -> None:
        expected = (len(self.names) + 1, len(Column))
        if self.sums.dtype != np.int64 or self.sums.shape != expected:
            raise ValueError(
                f"sums must be int64 {expected}, got {self.sums.dtype} {self.sums.shape}"
            )

    def __iter__(self) -> Iterator[tuple[str, DomainTotals]]:
        """(name, totals) of every domain that has tokens (or non-finite ones), in order."""
        for name, row in zip(self.names, self.sums, strict=False):
            if row[Column.TOKENS] > 0 or row[Column.NONFINITE] > 0:
                yield name, self._totals(row)

    def get(self, name: str) -> DomainTotals | None:
        """Totals of ``name``; None where it is absent."""
        return dict(self).get(name)

    @property
    def total(self) -> DomainTotals:
        """Totals over all domains."""
        return self._totals(self.sums[:-1].sum(axis=0))

    def parents(self) -> Iterator[tuple[str, DomainTotals]]:
        """(name, totals) of what domains with a ``/`` in their names are part of: ``a/b/c`` of
        ``a`` and of ``a/b``, if another domain is, too. In the order in which they first appear. A
        domain that is called ``a`` itself is a part of ``a``.

        A sample may be in several of them, so ``samples`` may be more than there are.
        """
        rows: dict[str, np.ndarray] = {}
        parts_of: Counter[str] = Counter()
        for name, row in zip(self.names, self.sums, strict=False):
            parts = name.split("/")
            for depth in range(1, len(parts) + 1):
                parent = "/".join(parts[:depth])
                rows[parent] = rows[parent] + row if parent in rows else row
                parts_of[parent] += 1
        for name, row in rows.items():
            if parts_of[name] < 2:  # it says the same as its one part
                continue
            if row[Column.TOKENS] > 0 or row[Column.NONFINITE] > 0:
                yield name, self._totals(row)

    @property
    def invalid_tokens(self) -> float:
        """Tokens whose domain id was outside ``[0, D)``."""
        return int(self.sums[-1, Column.TOKENS]) / SCALE[Column.TOKENS]

    @staticmethod
    def _totals(row: np.ndarray) -> DomainTotals:
        def value(column: Column) -> float:
            # int / int is correctly rounded in Python, whatever the size.
            return int(row[column]) / SCALE[column]

        return DomainTotals(
            loss_sum=value(Column.LOSS),
            tokens=value(Column.TOKENS),
            samples=int(row[Column.SAMPLES]),
            sample_loss_sum=value(Column.SAMPLE_LOSS),
            nonfinite=int(row[Column.NONFINITE]),
        )
