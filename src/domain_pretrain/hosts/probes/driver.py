"""One rank asks the model, and the others serve.

A probe may read files and use any library, so it runs on one rank, the driver. Before each of its
calls, the others are told what it asks; then all of them run the model together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from domain_pretrain.errors import ConfigError
from domain_pretrain.evaluate.model import Row, check_rows
from domain_pretrain.hosts.probes.scorer import Scorer
from domain_pretrain.hosts.probes.text import Text

# Of a probe, where the layout cuts the rows.
NO_PREDICTIONS = (
    "asks for predictions, which context parallelism would cut: evaluate with "
    "--context-parallel-size 1, or leave the probe out"
)
_DONE = "done"


class Driver:
    """The :class:`~domain_pretrain.evaluate.Model` of the rank that probes run on.

    Args:
        scorer: of this rank.
        text: of the run.
        context: tokens of a row.
        ids: that the embedding has.
        predicts: whether this layout can.

    Attributes:
        broken: a call of the model failed, so the ranks may not be where one thinks.
    """

    def __init__(
        self, scorer: Scorer, text: Text, context: int, ids: int, *, predicts: bool = True
    ) -> None:
        self._scorer = scorer
        self._predicts = predicts
        self._ids = ids
        self.encode = text.encode
        self.decode = text.decode
        self.end = text.end
        self.context = context
        self.broken = False

    def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        """See :class:`~domain_pretrain.evaluate.Model`."""
        return self._ask("log_likelihoods", rows, self.context + 1)

    def predict(self, rows: Sequence[Row]) -> list[list[int]]:
        """See :class:`~domain_pretrain.evaluate.Model`."""
        if not self._predicts:
            raise ConfigError(f"it {NO_PREDICTIONS}")
        return self._ask("predict", rows, self.context)

    def done(self, failure: str | None) -> None:
        """Nothing more is asked; the others go on, with what is wrong if anything is."""
        _tell((_DONE, failure))

    def _ask(self, what: str, rows: Sequence[Row], limit: int) -> Any:
        rows = list(rows)
        check_rows(rows, limit)  # before the others are told: they could not stop together
        if not rows:
            return []
        packed = _pack(rows)
        low, high = int(packed[0].min()), int(packed[0].max())
        if low < 0 or high >= self._ids:
            raise ConfigError(
                f"a row has the token {low if low < 0 else high:,}, and the model has "
                f"{self._ids:,}: they are of another tokenizer"
            )
        if self.broken:
            raise RuntimeError("an earlier call of the model failed")
        try:
            _tell((what, packed))
            return getattr(self._scorer, what)(rows)
        except BaseException:
            self.broken = True
            raise


def serve(scorer: Scorer) -> str | None:
    """Run the model as the driver asks, on every other rank, until it is done.

    Returns:
        What is wrong, for :meth:`Driver.done`.
    """
    while True:
        what, said = _tell(None)
        if what == _DONE:
            return None if said is None else str(said)
        run: Callable[[Sequence[Row]], Any] = getattr(scorer, what)
        run(_unpack(said))


def _tell(said: Any) -> Any:
    """From the driver, the last rank, to all.

    One broadcast of an object over the world group for each call of the model, 4 bytes a token.
    """
    box = [said]
    dist.broadcast_object_list(box, src=dist.get_world_size() - 1)
    return box[0]


def _pack(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All tokens, the rows' lengths, and where they are asked about from."""
    tokens = [token for row in rows for token in row.tokens]
    lengths, firsts = [len(row.tokens) for row in rows], [row.first for row in rows]
    whole, *rest = (np.array(numbers, np.int64) for numbers in (tokens, lengths, firsts))
    fits = whole.astype(np.int32)
    return (fits if (fits == whole).all() else whole, rest[0], rest[1])


def _unpack(packed: tuple[np.ndarray, np.ndarray, np.ndarray]) -> list[Row]:
    tokens, lengths, firsts = packed
    ends = np.cumsum(lengths)
    return [
        Row(tokens[end - length : end].tolist(), int(first))
        for end, length, first in zip(ends, lengths, firsts, strict=True)
    ]
