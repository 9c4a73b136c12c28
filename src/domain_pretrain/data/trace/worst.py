"""Of the documents that some samples are made of, those that are most out of the ordinary.

No loss is kept for a document, so this goes by the text alone: by how frequent its tokens are in
its domain, how varied they are, and how many other documents are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.trace.trace import Data, Sample
from domain_pretrain.data.trace.windows import Span

Order = Literal["odd", "monotonous", "copied"]
ORDERS: tuple[Order, ...] = get_args(Order)

MOST_SAMPLES = 2000  # that are read; of more, evenly spaced ones
MOST_ALIKE = 500  # documents of one length that are compared with each other
USUAL = 400  # documents that say what is usual in a prefix, evenly spaced
USUAL_TOKENS = 2000  # of each of them, at most
# So many tokens of the usual are mixed in: of a short piece, little is known.
SHORT = 32

_Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Worst:
    """A document, or the part of it that one sample has.

    Attributes:
        prefix, document, first, tokens: which part of which document it is.
        iteration, sample: where it was read.
        domain: whose it is.
        surprise: nats a token, by the frequencies of the tokens in its prefix.
        entropy: nats, of its own tokens: low where they repeat.
        copies: documents of its prefix that have the same tokens, itself among them; of its length,
            some are looked at.
    """

    prefix: str
    document: int
    first: int
    tokens: int
    iteration: int
    sample: int
    domain: str
    surprise: float
    entropy: float
    copies: int

    def dump(self) -> dict[str, Any]:
        """As a JSON object."""
        found = asdict(self)
        return {**found, "surprise": round(self.surprise, 3), "entropy": round(self.entropy, 3)}


def worst(samples: Sequence[Sample], order: Order, count: int) -> list[tuple[Worst, Sample, Span]]:
    """The worst first, each document once.

    Args:
        samples: whose documents they are.
        order: ``odd``: the most surprising tokens; ``monotonous``: the least varied; ``copied``:
            the most copies.
        count: at most so many.
    """
    step = -(-len(samples) // MOST_SAMPLES) or 1
    usual: dict[tuple[int, int], _Usual] = {}
    rated: list[tuple[tuple[float, ...], Worst, Sample, Span]] = []
    for sample in samples[::step]:
        key = (id(sample.part), sample.prefix)
        if key not in usual:
            usual[key] = _Usual(sample.part.data, sample.prefix)
        for span in sample.documents:
            found = usual[key].rate(sample, span)
            rated.append((_RATES[order](found, usual[key]), found, sample, span))
    rated.sort(key=lambda row: (row[0], row[1].prefix, row[1].document, row[1].sample))
    kept: dict[tuple[str, int], tuple[Worst, Sample, Span]] = {}
    for _, found, sample, span in rated:
        kept.setdefault((found.prefix, found.document), (found, sample, span))
    return list(kept.values())[:count]


class _Usual:
    """What is usual in a prefix."""

    def __init__(self, data: Data, prefix: int) -> None:
        self._data, self._prefix = data, prefix
        self._lengths = np.asarray(data.windows(prefix).lengths)
        self._copies: dict[int, int] = {}
        counts: _Ids = np.zeros(1, np.int64)
        for document in _spread(np.flatnonzero(self._lengths), USUAL):
            length = min(int(self._lengths[document]), USUAL_TOKENS)
            own = np.bincount(self._ids(Span(int(document), 0, length)))
            counts = _sum(counts, own)
        total = int(counts.sum())
        # One more of each: no token is impossible, also none that was not seen.
        self._surprise = np.log(total + len(counts) + 1) - np.log(counts + 1)
        self._unseen = math.log(total + len(counts) + 1)
        self.surprise = float((counts * self._surprise).sum() / max(total, 1))

    def rate(self, sample: Sample, span: Span) -> Worst:
        """A part of a document."""
        ids = self._ids(span)
        known = ids[ids < len(self._surprise)]
        surprise = float(self._surprise[known].sum()) + self._unseen * (len(ids) - len(known))
        shares = np.unique(ids, return_counts=True)[1] / len(ids)
        return Worst(
            prefix=sample.part.prefixes[sample.prefix],
            document=span.index,
            first=span.first,
            tokens=span.tokens,
            iteration=sample.iteration,
            sample=sample.position,
            domain=sample.domain_of(span),
            surprise=surprise / len(ids),
            entropy=float(-(shares * np.log(shares)).sum()),
            copies=self._count(span.index),
        )

    def _count(self, document: int) -> int:
        if document not in self._copies:
            length = int(self._lengths[document])
            own = self._ids(Span(document, 0, length))
            alike = _spread(np.flatnonzero(self._lengths == length), MOST_ALIKE)
            same = {
                int(other)
                for other in alike
                if np.array_equal(self._ids(Span(int(other), 0, length)), own)
            }
            self._copies[document] = len(same | {document})
        return self._copies[document]

    def _ids(self, span: Span) -> _Ids:
        return np.asarray(self._data.tokens(self._prefix, span)).astype(np.int64)


_RATES: dict[Order, Callable[[Worst, _Usual], tuple[float, ...]]] = {
    "odd": lambda one, usual: (-_shrunk(one.surprise, usual.surprise, one.tokens),),
    "monotonous": lambda one, usual: (_shrunk(one.entropy, usual.surprise, one.tokens),),
    "copied": lambda one, usual: (-float(one.copies), -float(one.tokens)),
}


def _shrunk(value: float, usual: float, tokens: int) -> float:
    return usual + (value - usual) * tokens / (tokens + SHORT)


def _spread(indices: NDArray[Any], most: int) -> Iterator[Any]:
    step = -(-len(indices) // most) or 1
    return iter(indices[::step])


def _sum(one: _Ids, other: _Ids) -> _Ids:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
