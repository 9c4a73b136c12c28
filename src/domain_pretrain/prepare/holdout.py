"""``--holdout``: which documents are kept from training; a text's hash decides, nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np

from domain_pretrain.prepare.errors import PrepareError

_ALL = 1 << 64  # digests are below


@dataclass(frozen=True)
class Cut:
    """Texts with a digest below the limit are held out: all of the same text, in every input.

    Attributes:
        limit: of the digests.
        limits: of those values of ``--by`` that have one of their own.
        shared: digests of texts that are held out whatever the value.
    """

    limit: int = 0
    limits: Mapping[str, int] = field(default_factory=dict)
    shared: frozenset[int] = frozenset()

    def holds(self, value: str, digest: int) -> bool:
        """Whether the text is held out."""
        return digest < self.limits.get(value, self.limit) or digest in self.shared


NO_CUT = Cut()


@dataclass(frozen=True)
class Holdout:
    """What was asked: a share of the texts or, where it is None, so many of every dataset."""

    share: Fraction | None
    documents: int

    def share_cut(self) -> Cut:
        """Where a share was asked."""
        assert self.share is not None
        return Cut(int(self.share * _ALL))

    def count_cut(self, digests: Mapping[str, np.ndarray]) -> Cut:
        """Where a number was asked: the texts with the lowest digests.

        What one value holds out, no other trains on.

        Args:
            digests: of every document, by the value of ``--by``; uint64.

        Raises:
            PrepareError: nothing would be left to train on.
        """
        limits = {}
        held_out, everything = [], []
        for value, found in digests.items():
            texts, counts = np.unique(found, return_counts=True)
            last = int(np.searchsorted(np.cumsum(counts), self.documents))
            if last + 1 >= len(texts):
                of = f" of {value!r}" if value else ""
                raise PrepareError(
                    f"--holdout {self.documents}: there are {len(found):,} documents{of} with "
                    f"{len(texts):,} different texts, and none would be left to train on; hold "
                    "out fewer, or a share"
                )
            limits[value] = int(texts[last]) + 1
            held_out.append(texts[: last + 1])
            everything.append(texts)
        texts, values = np.unique(_joined(everything), return_counts=True)
        shared = np.intersect1d(texts[values > 1], _joined(held_out))
        return Cut(limits=limits, shared=frozenset(map(int, shared)))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.uint64), *parts])


def parse_holdout(text: str) -> Holdout:
    """``1%`` or ``500``.

    Raises:
        PrepareError: it is neither.
    """
    found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(%?)", text, re.ASCII)
    number = Fraction(found[1]) if found else Fraction(0)
    if found and found[2] and 0 < number < 100:
        return Holdout(number / 100, 0)
    if found and not found[2] and number >= 1 and number.denominator == 1:
        return Holdout(None, int(number))
    raise PrepareError(
        f"--holdout {text!r}: give a share between 0% and 100%, such as 1%, or a number of "
        "documents, such as 500"
    )
