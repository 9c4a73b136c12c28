"""What a corpus is like, in a few numbers: gathered while it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np

from domain_pretrain.prepare.manifest import Quality
from domain_pretrain.prepare.traces import Traces

PERCENTILES = (5, 50, 95, 99)


def digest(text: bytes) -> int:
    """64 bits that tell texts apart: two of a billion documents agree by chance with odds 1:40."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


DUPLICATES_NAMED = 5
"""Duplicates whose numbers are in the manifest; all are counted."""


class QualityMeter:
    """Adds documents up; 12 bytes for each of them and 8 for each token id stay in memory.

    Args:
        vocab_size: number of ids.
    """

    def __init__(self, vocab_size: int) -> None:
        self._id_counts = np.zeros(vocab_size, np.int64)
        self._lengths: list[np.ndarray] = []
        self._digests: list[np.ndarray] = []
        self._traces = Traces()

    def add(self, ids: np.ndarray, lengths: list[int], digests: list[int], traces: Traces) -> None:
        """Add documents: all their ids, the ids of each, its digest; their traces together."""
        if len(ids) < len(self._id_counts):  # many datasets share a chunk
            found, counts = np.unique(ids, return_counts=True)
            self._id_counts[found] += counts
        else:
            counts = np.bincount(ids)
            self._id_counts[: len(counts)] += counts
        self._lengths.append(np.array(lengths, np.int32))  # as in an index
        self._digests.append(np.array(digests, np.uint64))
        self._traces.add(traces)

    @classmethod
    def of_all(cls, meters: Iterable[QualityMeter]) -> QualityMeter:
        """One that has seen what each of ``meters``, at least one, has seen."""
        meters = list(meters)
        whole = cls(len(meters[0]._id_counts))
        for meter in meters:
            whole._id_counts += meter._id_counts
            whole._lengths += meter._lengths
            whole._digests += meter._digests
            whole._traces.add(meter._traces)
        return whole

    def result(self) -> Quality:
        """The numbers; there is at least one document."""
        lengths = np.concatenate(self._lengths)
        duplicates, first_duplicates = find_duplicates(self._digests)
        # Whole numbers that occur, so that no rounding differs between machines.
        found = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
        counts = self._id_counts[self._id_counts > 0]
        shares = counts / counts.sum()
        traces = self._traces
        return Quality(
            shortest=int(lengths.min()),
            percentiles=dict(zip(map(str, PERCENTILES), map(int, found), strict=True)),
            longest=int(lengths.max()),
            exact_duplicates=duplicates,
            first_duplicates=first_duplicates,
            replacement_characters=traces.replacement_characters,
            html_entities=traces.html_entities,
            mojibake=traces.mojibake,
            special_tokens=traces.special_tokens,
            special_token_counts=dict(traces.special_token_counts.most_common()),
            ids_used=len(counts),
            unigram_entropy_nats=round(float(-(shares * np.log(shares)).sum()), 4) + 0.0,
        )


def find_duplicates(digests: Sequence[np.ndarray]) -> tuple[int, list[tuple[int, int]]]:
    """How many documents repeat an earlier one, and the first of them.

    Takes 9 bytes for each document for a while, and 33 where half of them repeat another.

    Args:
        digests: of all documents, in pieces; uint64.

    Returns:
        the count; the first ``DUPLICATES_NAMED``, each with the first document of its digest, by
        their places.
    """
    ordered = np.concatenate(digests)
    ordered.sort()
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    del ordered
    if not len(again):
        return 0, []
    repeated = np.unique(again)
    first = np.full(len(repeated), -1)  # place of its first document
    pairs: list[tuple[int, int]] = []
    start = 0
    for piece in digests:
        nearest = np.minimum(np.searchsorted(repeated, piece), len(repeated) - 1)
        here = np.flatnonzero(repeated[nearest] == piece)
        which, place = nearest[here], start + here
        found, at = np.unique(which, return_index=True)
        unseen = first[found] < 0
        first[found[unseen]] = place[at[unseen]]
        later = place != first[which]
        pairs += zip(place[later].tolist(), first[which[later]].tolist(), strict=True)
        if len(pairs) >= DUPLICATES_NAMED:
            break
        start += len(piece)
    return len(again), pairs[:DUPLICATES_NAMED]
