"""What alarms keep by domain: columns of a rule's state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.rules.state import State

Array = NDArray[np.float64]


def column(state: State, key: str, fresh: Array) -> Array:
    """A copy of what is kept; ``fresh``, ``[D, …]``, where nothing is known of a domain."""
    found = state.get(key)
    return fresh.copy() if found is None else np.where(np.isnan(found), fresh, found)


def in_a_row(holds: bool, runs: Array, row: int) -> tuple[float, float]:
    """For how many windows a condition has held up to now, and for how many it has not.

    Args:
        holds: whether it does now.
        runs: ``[D]``, positive while it holds, negative while it does not; changed in place.
        row: of the domain.
    """
    so_far = runs[row]
    runs[row] = max(so_far, 0.0) + 1 if holds else min(so_far, 0.0) - 1
    return max(runs[row], 0.0), max(-runs[row], 0.0)


def onset(holds: bool, clear: bool, active: Array, row: int) -> bool:
    """Whether a condition begins: it holds, and has been clear since it was told last.

    Args:
        holds: whether it does now.
        clear: whether it is over; between the two, nothing changes.
        active: ``[D]``, 1 where it was told; changed in place.
        row: of the domain.
    """
    begins = holds and not active[row]
    if holds:
        active[row] = 1.0
    elif clear:
        active[row] = 0.0
    return begins
