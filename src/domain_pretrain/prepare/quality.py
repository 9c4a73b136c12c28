"""What a corpus is like, in a few numbers: gathered while it is written."""

from __future__ import annotations

import hashlib

import numpy as np

from domain_pretrain.prepare.manifest import Quality

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
        self._replacements = 0

    def add(
        self, ids: np.ndarray, lengths: list[int], digests: list[int], replacements: int
    ) -> None:
        """Add documents: all their ids, the ids of each, its digest; their U+FFFD together."""
        counts = np.bincount(ids)
        self._id_counts[: len(counts)] += counts
        self._lengths.append(np.array(lengths, np.int64))
        self._digests.append(np.array(digests, np.uint64))
        self._replacements += replacements

    def result(self) -> Quality:
        """The numbers; there is at least one document."""
        lengths = np.concatenate(self._lengths)
        digests = np.concatenate(self._digests)
        # Whole numbers that occur, so that no rounding differs between machines.
        found = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
        counts = self._id_counts[self._id_counts > 0]
        shares = counts / counts.sum()
        return Quality(
            shortest=int(lengths.min()),
            percentiles=dict(zip(map(str, PERCENTILES), map(int, found), strict=True)),
            longest=int(lengths.max()),
            exact_duplicates=len(digests) - len(np.unique(digests)),
            replacement_characters=self._replacements,
            ids_used=len(counts),
            unigram_entropy_nats=round(float(-(shares * np.log(shares)).sum()), 4) + 0.0,
        )
