"""What a run has read of each prefix: samples, epochs, and documents as a whole or in part."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.mix.apportion import Counts
from domain_pretrain.data.trace.windows import Windows


@dataclass
class Reads:
    """Of one prefix.

    Attributes:
        prefix: as the data flag spelled it last.
        domain: whose it was last.
        samples: that were read.
        orders: windows in some order, and how often each was read; one, unless the run carried on
            in another order of the same prefix.
        earlier: documents that a run before had read, and this one left out.
    """

    prefix: str
    domain: str
    samples: int = 0
    orders: list[tuple[Windows, Counts]] = field(default_factory=list)
    earlier: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, windows: Windows, times: Counts) -> None:
        """What another part of the run has read."""
        self.samples += int(times.sum())
        for known, own in self.orders:
            if _same(known, windows):
                own += times
                return
        self.orders.append((windows, times))

    def documents(self, beyond: float = 0.0) -> NDArray[np.bool_]:
        """The documents of which the present epoch has read more than a part, ``[documents]``.

        An epoch is what the prefix has of whole samples; with several behind it, documents are
        told that were read once more than those. What a run before has read counts until this one
        is through with the rest.

        Args:
            beyond: that part, 0 ≤ part < 1.
        """
        lengths = np.asarray(self.orders[0][0].lengths)
        read = np.zeros(len(lengths), np.int64)
        epochs = 0.0
        for windows, times in self.orders:
            own, size = windows.documents, windows.size
            for behind in range(int(times.max(initial=0))):
                np.add.at(read, own, windows.covered(times > behind))
            trained = int(lengths[np.unique(own)].sum(dtype=np.int64))
            epochs += int(times.sum()) / max(1, (trained - windows.extra) // size)
        found: NDArray[np.bool_] = read > (int(epochs) + beyond) * lengths
        if epochs < 1:
            found[self.earlier] = True
        return found

    def told(self) -> Told:
        """In numbers."""
        tokens = trained = 0
        lengths = self.orders[0][0].lengths
        whole, part = (np.zeros(len(lengths), bool) for _ in range(2))
        for windows, times in self.orders:
            trained = int(lengths[np.unique(windows.documents)].sum(dtype=np.int64))
            tokens += int(windows.size * times.sum())
            covered = windows.covered(times)
            own = lengths[windows.documents]
            whole[windows.documents[(covered == own) & (own > 0)]] = True
            part[windows.documents[covered > 0]] = True
        count = len(np.unique(self.orders[-1][0].documents))
        documents = {
            "whole": int(whole.sum()),
            "part": int((part & ~whole).sum()),
            "never": count - int(part.sum()),
        }
        return Told(self.prefix, self.domain, self.samples, tokens / trained, documents)


@dataclass(frozen=True)
class Told:
    """Of one prefix, in numbers.

    Attributes:
        prefix, domain, samples: see :class:`Reads`.
        epochs: tokens that were read, in those of its training documents.
        documents: for training, of which some pass has read the whole, a part or nothing.
    """

    prefix: str
    domain: str
    samples: int
    epochs: float
    documents: dict[str, int]

    def dump(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def _same(one: Windows, other: Windows) -> bool:
    pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]] = (
        (one.shuffle, other.shuffle),
        (one.documents, other.documents),
    )
    return all(np.array_equal(*pair) for pair in pairs)
