"""The documents with the highest loss, and how much of a domain's noise they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from domain_pretrain.records.score import Score
from domain_pretrain.report.compare import LOSS


@dataclass(frozen=True)
class Document:
    """One of a domain's.

    Attributes:
        name: as its part is called: ``heldout/finance.jsonl:12``.
        loss: mean over its tokens, nats.
        tokens: how many they are.
        noise: its part of the variance of the domain's mean, 0 to 1.
    """

    name: str
    loss: float
    tokens: int
    noise: float


@dataclass(frozen=True)
class Worst:
    """A domain's documents with the highest loss.

    Attributes:
        domain: of them.
        mean: the domain's loss, nats per token.
        of: documents of the domain.
        documents: the worst first; only those above the mean.
    """

    domain: str
    mean: float
    of: int
    documents: tuple[Document, ...]

    @property
    def noise(self) -> float:
        """The part of the variance of the domain's mean that these documents carry."""
        return math.fsum(one.noise for one in self.documents)


def worst_documents(scores: Sequence[Score], most: int) -> list[Worst]:
    """Of every domain that has a loss by document; the domain whose noise they carry most, first.

    The variance of a mean is a sum over documents of ``(sum_i − mean·tokens_i)²``, see
    :attr:`.Score.error`: a few of junk may carry half of it.

    Args:
        scores: of one model; those called ``loss`` count.
        most: documents of a domain.
    """
    found = [
        _worst(score, most)
        for score in scores
        if score.name == LOSS and len(score.parts) > 1 and math.isfinite(score.mean)
    ]
    return sorted(found, key=lambda one: -one.noise)


def _worst(score: Score, most: int) -> Worst:
    parts = [part for part in score.parts if part.count]
    squares = [(part.sum - score.mean * part.count) ** 2 for part in parts]
    total = math.fsum(squares)
    documents = [
        Document(part.name, part.sum / part.count, part.count, square / total)
        for part, square in zip(parts, squares, strict=True)
        if part.sum > score.mean * part.count
    ]
    documents.sort(key=lambda one: -one.loss)
    return Worst(score.domain, score.mean, len(parts), tuple(documents[:most]))
