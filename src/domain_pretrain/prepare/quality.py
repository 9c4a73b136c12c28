"""What a corpus is like, in a few numbers: gathered while it is written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from domain_pretrain.prepare.manifest import Quality
from domain_pretrain.prepare.traces import Traces

PERCENTILES = (5, 50, 95, 99)


def digest(text: bytes) -> int:
    """64 bits that tell texts apart: two of a billion documents agree by chance with odds 1:40."""
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class QualityMeter:
    """Adds documents up; 16 bytes for each of them and 8 for each token id stay in memory.

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
        self._lengths.append(np.array(lengths, np.int64))
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
        digests = np.concatenate(self._digests)
        # Whole numbers that occur, so that no rounding differs between machines.
        found = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
        counts = self._id_counts[self._id_counts > 0]
        shares = counts / counts.sum()
        traces = self._traces
        return Quality(
            shortest=int(lengths.min()),
            percentiles=dict(zip(map(str, PERCENTILES), map(int, found), strict=True)),
            longest=int(lengths.max()),
            exact_duplicates=len(digests) - len(np.unique(digests)),
            replacement_characters=traces.replacement_characters,
            html_entities=traces.html_entities,
            mojibake=traces.mojibake,
            special_tokens=traces.special_tokens,
            special_token_counts=dict(traces.special_token_counts.most_common()),
            ids_used=len(counts),
            unigram_entropy_nats=round(float(-(shares * np.log(shares)).sum()), 4) + 0.0,
        )
