"""What alarms keep by domain: columns of a rule's state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.rules.state import State

Array = NDArray[np.float64]

IN_A_ROW = 3  # windows: one alone is noise
OVER = 32  # windows without it before it is told again: a loss may hover around a limit


def column(state: State, key: str, fresh: Array) -> Array:
    """A copy of what is kept; ``fresh``, ``[D, …]``, where nothing is known of a domain."""
    found = state.get(key)
    return fresh.copy() if found is None else np.where(np.isnan(found), fresh, found)


def stays(holds: bool, runs: Array, active: Array, row: int, *, counts: bool = True) -> bool:
    """Whether a condition has come to stay: told once it has held for some windows in a row.

    Args:
        holds: whether it does now.
        runs: ``[D]``, windows in a row: positive while it holds, negative while it does not;
            changed in place.
        active: as :func:`onset` takes it.
        row: of the domain.
        counts: whether that may be told by now.
    """
    so_far = float(runs[row])
    runs[row] = now = max(so_far, 0.0) + 1 if holds else min(so_far, 0.0) - 1
    return onset(counts and now >= IN_A_ROW, now <= -OVER, active, row)


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
