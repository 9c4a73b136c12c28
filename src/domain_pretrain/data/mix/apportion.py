"""How many samples of every prefix each chunk of a stage takes, and in which order.

Prefix d is due ``T_d(t)`` samples in the first t of a stage: a real number. At the end of every
chunk it has got ``C_d(t)``, a whole one, with ``|C − T| < 1`` for all prefixes at once and
``ΣC = t``. Whole numbers with these bounds always exist, since T itself keeps them and each sample
is a job with a release (T exceeds j) and a deadline (T reaches j + 1); serving the earliest
deadline first finds them. Largest remainders mostly do, too, but not always where weights change:
rare prefixes that were rounded up as they fade leave too little for the others.

Elementary operations on integers and float64 alone, which have the same bits on every machine: all
ranks must get the same, whatever their CPUs and libraries.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape = Literal["constant", "linear", "cosine"]
Counts: TypeAlias = NDArray[np.int64]

CHUNK = 4096  # samples that are ordered together
_PIECE = 1 << 20  # of an index that is counted at a time
_UNIT = 1 << 24  # T is counted in parts of a sample
_STEPS = 64  # of a change of weights, at least, where it has as many samples
_GOLDEN = (math.sqrt(5) - 1) / 2


def shares_of(weights: Sequence[float]) -> NDArray[np.float64]:
    """Weights → shares that sum to 1."""
    return np.array(weights, np.float64) / math.fsum(weights)


def constant(shares: NDArray[np.float64], samples: int, *, whole: bool) -> tuple[Counts, Counts]:
    """Chunks of a stage whose weights stay as they are.

    Args:
        shares: ``[D]``, summing to 1.
        samples: of the stage.
        whole: whether it ends there; else the last chunk is a full one, so that a stage that
            goes on for longer begins with the same chunks.

    Returns:
        The chunks' ends, ``[B + 1]`` from 0 on, and the samples of every prefix up to there,
        ``[B + 1, D]``.
    """
    ends = _ends(samples, CHUNK) if whole else np.arange(0, samples + CHUNK, CHUNK)
    units = _units(ends[:, None] * shares, ends, shares)

    def due(row: int, counts: Counts) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            return ((counts + 1) * _UNIT - units[row]) / shares

    return ends, _serve(ends, units, due)


def changing(
    before: NDArray[np.float64],
    after: NDArray[np.float64],
    samples: int,
    shape: Shape,
) -> tuple[Counts, Counts]:
    """Chunks of a stage whose shares go from ``before`` to ``after``; see :func:`constant`."""
    ends = _ends(samples, max(1, min(CHUNK, samples // _STEPS)))
    way = samples * _integral(shape, ends / samples)
    due_so_far = ends[:, None] * before + way[:, None] * (after - before)
    units = _units(due_so_far, ends, before + after)

    def due(row: int, counts: Counts) -> NDArray[np.float64]:
        """The first later row in which each prefix is due; among those, the most behind first."""
        columns, wanted = np.arange(len(counts)), (counts + 1) * _UNIT
        early, late = np.full(counts.shape, row), np.full(counts.shape, len(units))
        for _ in range(len(units).bit_length()):  # not due in `early`, due in `late`
            middle = (early + late) // 2
            there = units[middle, columns] >= wanted
            early, late = np.where(there, early, middle), np.where(there, middle, late)
        return late + (wanted - units[row]) / (2.0 * _UNIT)

    return ends, _serve(ends, units, due)


def ordered(counts: Counts) -> tuple[NDArray[np.int16], Counts]:
    """The order of a chunk: every prefix spread evenly over it.

    Sample j of the ``c`` that prefix d has in the chunk lies at ``(j + φ_d) / c`` of it. The phases
    φ are spread by the golden ratio: with equal ones, all rare prefixes would come at once.

    Args:
        counts: int64 ``[D]``, Σ = m.

    Returns:
        For each place, ``[m]``: the prefix, and which of its samples in this chunk.
    """
    live = np.flatnonzero(counts)
    own = counts[live]
    number = np.repeat(np.arange(len(live)), own)
    first = np.cumsum(own) - own
    sample = np.arange(len(number), dtype=np.int64) - first[number]
    phase = (_GOLDEN * (live + 1)) % 1.0
    order = np.argsort((sample + phase[number]) / own[number], kind="stable")
    return live[number[order]].astype(np.int16), sample[order]


def tally(numbers: NDArray[Any], kinds: int) -> Counts:
    """How often each of ``range(kinds)`` is there; piece by piece, for bincount makes it int64."""
    total = np.zeros(kinds, np.int64)
    for first in range(0, len(numbers), _PIECE):
        total += np.bincount(numbers[first : first + _PIECE], minlength=kinds)
    return total


def greedy(weights: Sequence[float], samples: int) -> tuple[NDArray[np.int16], Counts]:
    """The host's ``build_blending_indices``, without the host; a few microseconds a sample.

    Where a compiler contracts the host's product and difference (on Arm), ties may fall otherwise.

    Args:
        weights: ``[D]``, normalised.
        samples: how many.

    Returns:
        For each sample, the prefix and which of its samples.
    """
    shares = np.array(weights, np.float64)
    counts = np.zeros(len(shares))
    prefix, sample = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    for index in range(samples):
        chosen = int(np.argmax(shares * max(index, 1.0) - counts))
        prefix[index], sample[index] = chosen, counts[chosen]
        counts[chosen] += 1
    return prefix, sample


def _ends(samples: int, chunk: int) -> NDArray[Any]:
    return np.append(np.arange(0, samples, chunk), samples)


def _units(due: NDArray[np.float64], ends: Counts, shares: NDArray[np.float64]) -> Counts:
    """T in whole units, ``[B + 1, D]``; each row's sum is exact, which the bounds rest upon."""
    units = np.rint(due * _UNIT).astype(np.int64)
    units[:, int(np.argmax(shares))] += ends * _UNIT - units.sum(axis=1)
    return units


def _serve(
    ends: Counts, units: Counts, due: Callable[[int, Counts], NDArray[np.float64]]
) -> Counts:
    """C for T: what is due at once, then what is due soonest of what has begun to be."""
    counts = np.zeros_like(units)
    for row in range(1, len(ends)):
        now = np.maximum(units[row] // _UNIT, counts[row - 1])
        free = int(ends[row] - now.sum())
        if free:
            begun = np.flatnonzero(now * _UNIT < units[row])
            soonest = np.argsort(due(row, now)[begun], kind="stable")[:free]
            now[begun[soonest]] += 1
        counts[row] = now
    return counts


def _integral(shape: Shape, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """∫ from 0 to x of the way that a change of weights has gone: 0 at its start, 1 at its end."""
    if shape == "linear":
        return x * x / 2
    return x / 2 - _sine_of_pi(x) / (2 * math.pi)


def _sine_of_pi(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """sin(π·x) for x from 0 to 1, to 1e-13, by its series: libraries differ in the last bit."""
    angle = math.pi * np.minimum(x, 1 - x)
    total = term = angle
    for k in range(2, 22, 2):
        term = term * -(angle * angle) / (k * (k + 1))
        total = total + term
    return total
