"""A rule's state as it goes into a checkpoint: Python primitives, per-domain values by name.

Keyed by name there is nothing to remap: another order of domains loads as it is, a domain that
left is dropped, one that is new has no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

# What a rule keeps between steps: numbers, and float64 arrays ``[D, ...]`` whose row NaN means "not
# known yet". A fresh rule gets {}; a domain that joins later gets a NaN row.
State = dict[str, Any]


def dump(state: State, names: tuple[str, ...]) -> dict[str, Any]:
    """``{key: number}`` and ``{key: {domain: value or list}}``; rows with NaN are left out.

    Raises:
        TypeError: a value is neither a number nor an array with a row per domain.
    """
    return {key: _plain(key, value, names) for key, value in state.items()}


def load(saved: Mapping[str, Any], names: tuple[str, ...]) -> State:
    """The inverse for these domains: a domain that ``saved`` does not know gets a row of NaN."""
    state: State = {}
    for key, value in saved.items():
        if not isinstance(value, dict):
            state[key] = value
        elif value:
            unknown = np.full(np.shape(next(iter(value.values()))), np.nan)
            state[key] = np.array([value.get(name, unknown) for name in names], dtype=np.float64)
    return state


def _plain(key: str, value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, np.generic):  # a checkpoint that holds one cannot be read back
        value = value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray) and value.shape[:1] == (len(names),):
        rows = zip(names, value, strict=True)
        return {name: row.tolist() for name, row in rows if not np.isnan(row).any()}
    raise TypeError(
        f"state {key!r} is {type(value).__name__} {getattr(value, 'shape', '')}: a checkpoint "
        f"takes numbers, text, and float64 arrays with one row for each of {len(names)} domains"
    )
