"""The order in which context parallelism deals out a sequence: the host's, which we follow.

Rank r of cp holds two of the sequence's ``2·cp`` chunks, r and ``2·cp - 1 - r`` ("zigzag"), so
that causal attention costs every rank the same.

Shapes: s positions of the whole sequence, l = s / cp of one rank.
"""

from __future__ import annotations

import torch
from torch import Tensor


def zigzag_order(x: Tensor, cp: int) -> Tensor:
    """``[s, ...]``, by position, to ``[cp, l, ...]``, by rank."""
    chunks = x.unflatten(0, (2 * cp, -1))
    return torch.stack((chunks[:cp], chunks[cp:].flip(0)), dim=1).flatten(1, 2)


def natural_order(x: Tensor) -> Tensor:
    """``[cp, l, ...]``, by rank, to ``[s, ...]``, by position: the inverse."""
    halves = x.unflatten(1, (2, -1))
    return torch.cat((halves[:, 0], halves[:, 1].flip(0))).flatten(0, 1)
