"""Shares, none of them above what its data are enough for."""

from __future__ import annotations

import math

import numpy as np

from domain_pretrain.strategies.observation import Array


def capped(shares: Array, most: Array) -> Array:
    """The same sum, none above its most; what is cut off goes to the others in proportion.

    Args:
        shares, most: ``[n]``; Σ most ≥ Σ shares, at least nearly: else every one has its most. What
            has no share gets one only where all others have their most.
    """
    full, total = shares > most, math.fsum(shares)
    if not full.any():
        return shares
    while True:
        ratio = shares if shares[~full].any() else most
        rest, others = total - math.fsum(most[full]), math.fsum(ratio[~full])
        if rest <= 0 or others <= 0:
            return np.where(full, most, 0.0)
        given = np.where(full, most, ratio * (rest / others))
        over = ~full & (given > most)
        if not over.any():
            return given
        full |= over
