"""How many samples of every prefix a block takes, where its shares are known only now.

Prefix d is due ``T_d = Σ share·samples`` over all blocks so far, and has got ``C_d``. A block goes,
sample by sample, to whoever is owed most, so that ``|C − T| < 1`` as long as a block has room for a
sample of every prefix. Rarer ones may be further ahead for a while where their shares fall at once:
what they got cannot be taken back, and what comes is not known (``apportion`` knows).

Integers, and float64 in elementary operations alone: all ranks must get the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.mix.apportion import Counts
from domain_pretrain.strategies.capped import capped

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

UNIT = 1 << 40  # T is counted in parts of a sample
LARGEST_BLOCK = 1 << 20  # samples; times UNIT, it is within int64


def by_prefix(shares: Array, parts: Array, owners: Counts, fixed: Mask, most: Array) -> Array:
    """Shares of the domains → of their prefixes.

    Args:
        shares: ``[D]``, Σ = 1.
        parts: ``[n]``, of every prefix in its domain.
        owners: ``[n]``, the domain of every prefix.
        fixed: bool ``[D]``, domains whose share is not changed.
        most: ``[n]``, the largest share that each prefix can have; infinite where there is none.
            What it cuts off stays in the domain as far as it can, and else goes to other domains.
    """
    if np.isinf(most).all():
        return shares[owners] * parts
    of_domains = np.bincount(owners, most, len(shares))
    shares = shares.copy()
    shares[~fixed] = capped(shares[~fixed], of_domains[~fixed])
    found = shares[owners] * parts
    for domain in range(len(shares)):
        own = owners == domain
        found[own] = capped(found[own], most[own])
    return found


def due(shares: Array, samples: int) -> Counts:
    """What a block adds to T, int64 ``[n]`` in :data:`UNIT` parts of a sample; Σ is exact."""
    units = np.rint(shares * UNIT).astype(np.int64)
    units[int(np.argmax(shares))] += UNIT - units.sum()
    return units * samples


def handed_out(owed: Counts, samples: int, room: Counts) -> Counts:
    """Samples of every prefix in a block: each goes to whoever is owed most.

    Args:
        owed: ``[n]``, T − C at the end of the block if it gave nothing; Σ = samples × UNIT.
        samples: of the block.
        room: ``[n]``, what each can give at most; Σ ≥ samples.

    Returns:
        ``[n]``, Σ = samples.
    """
    counts = np.clip(owed // UNIT, 0, room)
    while left := samples - int(counts.sum()):
        if left > 0:
            some = np.flatnonzero(counts < room)
            assert len(some), "there is no room for the block"
            order = np.argsort((counts * UNIT - owed)[some], kind="stable")
            counts[some[order[:left]]] += 1
        else:  # of those that were ahead, nothing can be taken back
            some = np.flatnonzero(counts > 0)
            order = np.argsort((owed - counts * UNIT)[some], kind="stable")
            counts[some[order[:-left]]] -= 1
    return counts
