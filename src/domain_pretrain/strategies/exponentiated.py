"""Exponentiated gradient ascent on the simplex: what group_dro, excess and velocity share."""

from __future__ import annotations

import numpy as np

from domain_pretrain.rules.state import State
from domain_pretrain.strategies.observation import Array, Observation, known

SMALLEST = np.finfo(np.float64).tiny


def ascend(seen: Observation, state: State, gain: Array, smoothing: float) -> tuple[Array, State]:
    """``w ← (1 − c)·softmax(log w + gain) + c/K`` over the K active domains.

    The weights start uniform and are held during the warm-up. A domain that joins later starts at
    the mean of the others.

    Args:
        gain: ``[K]``, added to the log-weights.
        smoothing: c. It bounds every weight from below, hence also the time it takes to come back
            from there: without it a weight that was clipped for long would stay clipped for long.

    Returns:
        The weights ``[D]``, and the state with them under ``weights``.
    """
    if seen.warming:
        return seen.uniform(), state
    every = known(state, "weights", seen.loss)
    weights = every[seen.active]
    new = np.isnan(weights)
    weights[new] = weights[~new].mean() if (~new).any() else 1.0
    log = np.log(np.maximum(weights, SMALLEST)) + gain
    result = seen.weights(np.exp(log - log.max()))
    result[seen.active] = (1 - smoothing) * result[seen.active] + smoothing / weights.size
    every[seen.active] = result[seen.active]
    return result, {**state, "weights": every}
