"""The windows of one data set, and the documents that each is cut from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Span:
    """A part of a document.

    Attributes:
        index: of the document in its prefix.
        first: token of it.
        tokens: how many.
    """

    index: int
    first: int
    tokens: int


@dataclass(frozen=True)
class Windows:
    """What megatron-core's ``GPTDataset`` makes of a prefix: documents in a row, cut into windows.

    Attributes:
        documents: ``[N]``: documents, epoch after epoch, shuffled.
        cuts: ``[W + 1, 2]``: where each window begins: place in ``documents``, token there.
        shuffle: ``[W]``: which window comes when.
        lengths: tokens of every document of the prefix.
        extra: tokens that a window has beyond the next one's begin: 1, the last label.
    """

    documents: NDArray[Any]
    cuts: NDArray[Any]
    shuffle: NDArray[Any]
    lengths: NDArray[Any]
    extra: int = 1

    def spans(self, number: int) -> list[Span]:
        """The documents of the window that comes as number ``number``, in order."""
        return self._spans(int(self.shuffle[number]))

    @classmethod
    def of(cls, data: Any) -> Windows:
        """Of a ``GPTDataset``."""
        return cls(
            data.document_index,
            data.sample_index,
            data.shuffle_index,
            data.dataset.sequence_lengths,
            int(getattr(data.config, "add_extra_token_to_sequence", True)),
        )

    def holding(self, wanted: Sequence[int]) -> list[int]:
        """The numbers of the windows that hold a token of one of some documents, ascending."""
        begins, own = np.asarray(self.cuts[:, 0]), set(wanted)
        found: set[int] = set()
        for place in np.flatnonzero(np.isin(self.documents, wanted)):
            first = int(np.searchsorted(begins[1:], place, side="left"))
            stop = int(np.searchsorted(begins[:-1], place, side="right"))
            found.update(
                window
                for window in range(first, stop)
                if any(span.index in own for span in self._spans(window))
            )
        return [int(number) for number in np.flatnonzero(np.isin(self.shuffle, sorted(found)))]

    def _spans(self, window: int) -> list[Span]:
        (begin, offset), (end, rest) = self.cuts[window].tolist(), self.cuts[window + 1].tolist()
        documents = self.documents[begin : end + 1]
        tokens = self.lengths[documents].astype(np.int64)
        first = np.zeros(len(tokens), np.int64)
        tokens[-1] = rest + self.extra
        first[0], tokens[0] = offset, tokens[0] - offset
        rows = zip(documents.tolist(), first.tolist(), tokens.tolist(), strict=True)
        return [Span(*row) for row in rows if row[2]]
