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
        owner: whose memory ``lengths`` is. Megatron unmaps the file with its data set, whoever
            still looks at it: a read after that ends the process.
    """

    documents: NDArray[Any]
    cuts: NDArray[Any]
    shuffle: NDArray[Any]
    lengths: NDArray[Any]
    extra: int = 1
    owner: Any = None

    @property
    def size(self) -> int:
        """Tokens from the begin of one window to that of the next."""
        return sum(span.tokens for span in self._spans(0)) - self.extra

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
            data.dataset,
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

    def covered(self, times: NDArray[Any]) -> NDArray[np.int64]:
        """Tokens of each of :attr:`documents` that are in some window which was read, ``[N]``.

        Args:
            times: ``[W]``: how often each window was read, by its number.
        """
        ends = np.cumsum(self.lengths[self.documents], dtype=np.int64)
        ends = np.concatenate([np.zeros(1, np.int64), ends])
        begins = ends[self.cuts[:, 0]] + self.cuts[:, 1]  # of the windows, and of what is left over
        read = np.zeros(len(begins), bool)
        read[self.shuffle[np.flatnonzero(times)]] = True
        sizes = np.append(np.diff(begins), ends[-1] - begins[-1])
        # A window that was read ends with the first tokens of the next.
        after = np.append(False, read[:-1])
        known = np.where(read, sizes, np.where(after, np.minimum(self.extra, sizes), 0))
        before = np.cumsum(known) - known
        window = np.searchsorted(begins, ends, side="right") - 1
        upto = before[window] + np.minimum(ends - begins[window], known[window])
        return np.diff(upto)

    def _spans(self, window: int) -> list[Span]:
        (begin, offset), (end, rest) = self.cuts[window].tolist(), self.cuts[window + 1].tolist()
        documents = self.documents[begin : end + 1]
        tokens = self.lengths[documents].astype(np.int64)
        first = np.zeros(len(tokens), np.int64)
        tokens[-1] = rest + self.extra
        first[0], tokens[0] = offset, tokens[0] - offset
        rows = zip(documents.tolist(), first.tolist(), tokens.tolist(), strict=True)
        return [Span(*row) for row in rows if row[2]]
