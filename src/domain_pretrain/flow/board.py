"""The decided blocks, in memory that a process shares with its data loader's workers."""

from __future__ import annotations

import multiprocessing
import os
import time
import zlib

import numpy as np
import torch
from numpy.typing import NDArray

from domain_pretrain.data.mix.apportion import Counts
from domain_pretrain.errors import IntegrityError

# Seconds. A worker reads ahead, and waits while the run trains, evaluates or saves: by construction
# a block comes before the run needs it, so that the limit is for what nobody has thought of.
PATIENCE = 3600.0
_NAP = 0.002


class Board:
    """A few rows, one for each block that can be read now; one process writes, any number reads.

    A row is the block's number, the samples of every prefix before it and in it, and a checksum
    over all of these: what was read while it was being written is read again, whatever order the
    processor's stores become visible in.

    The tensor travels to workers that are forked or spawned. A view of it by numpy would not: a
    spawned worker would get a copy, in which nothing ever appears.

    Args:
        prefixes: of the stream.
        rows: blocks that can be read at a time.
        patience: seconds that :meth:`wait` waits.
    """

    def __init__(self, prefixes: int, rows: int, patience: float = PATIENCE) -> None:
        self._rows = torch.full((rows, 2 + 2 * prefixes), -1, dtype=torch.int64).share_memory_()
        self._patience = patience

    def publish(self, number: int, start: Counts, counts: Counts) -> None:
        """Put a block in the place of the oldest; one that is there stays as it is."""
        rows: NDArray[np.int64] = self._rows.numpy()
        if number in rows[:, 0]:
            return
        content = np.concatenate([np.array([number], np.int64), start, counts])
        rows[int(np.argmin(rows[:, 0]))] = [*content, _checksum(content)]

    def read(self, number: int) -> tuple[Counts, Counts] | None:
        """Samples of every prefix before the block, and in it; None where it is not there."""
        for row in self._rows.numpy().copy():
            if row[0] == number and row[-1] == _checksum(row[:-1]):
                start, counts = row[1:-1].reshape(2, -1)
                return start, counts
        return None

    def wait(self, number: int) -> tuple[Counts, Counts]:
        """The same, once it is there.

        The process that decides does not wait for itself.

        Raises:
            IntegrityError: it does not come.
        """
        alone = torch.utils.data.get_worker_info() is None
        patience = 0.0 if alone else self._patience
        parent, above, since = multiprocessing.parent_process(), os.getppid(), time.monotonic()
        while (found := self.read(number)) is None:
            if time.monotonic() - since >= patience:
                there = sorted(int(row) for row in self._rows[:, 0] if row >= 0)
                raise IntegrityError(
                    f"mix.dynamic: block {number} of the stream is not decided after "
                    f"{patience:,.0f} s (decided and not yet read are {there or 'none'}): the "
                    "script reads further ahead than a step; please report it, and leave "
                    "mix.dynamic out until then"
                )
            # A forked worker that lives keeps its elder siblings from seeing the parent's end,
            # and one whose parent ended before has no other to compare with.
            if os.getppid() != above or (parent is not None and not parent.is_alive()):
                raise IntegrityError("the process that trains has ended")
            time.sleep(_NAP)
        return found


def _checksum(content: Counts) -> int:
    return zlib.crc32(content.tobytes())
