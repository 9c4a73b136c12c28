"""The order of a prefix's samples in its second and later epochs: a keyed permutation.

A balanced Feistel network over the smallest 2^2h ≥ n, walked along its cycle until a value below n
comes up. It needs no memory, any place of it is computed by itself, and integers have the same bits
on every machine.
"""

from __future__ import annotations

_ROUNDS = 4
_WORD = (1 << 64) - 1


def permuted(index: int, size: int, *key: int) -> int:
    """Where ``index`` goes in the permutation of ``range(size)`` that ``key`` chooses.

    Args:
        index: 0 ≤ index < size.
        size: of the range, at least 1.
        key: of any length, each number below 2^64.
    """
    half, mask, seed = _network(size, key)
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (_mixed(seed + (turn << 40) + right) & mask)
        index = left << half | right
        if index < size:
            return index


def restored(index: int, size: int, *key: int) -> int:
    """What :func:`permuted` has brought to ``index``: its inverse."""
    half, mask, seed = _network(size, key)
    while True:
        left, right = index >> half, index & mask
        for turn in reversed(range(_ROUNDS)):
            left, right = right ^ (_mixed(seed + (turn << 40) + left) & mask), left
        index = left << half | right
        if index < size:
            return index


def _network(size: int, key: tuple[int, ...]) -> tuple[int, int, int]:
    """Bits of a half, their mask, and the seed of the rounds."""
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    seed = 0
    for number in key:
        seed = _mixed(seed ^ number)
    return half, (1 << half) - 1, seed


def _mixed(number: int) -> int:
    """The finaliser of splitmix64: every bit of the answer hangs on every bit of the number."""
    number = (number + 0x9E3779B97F4A7C15) & _WORD
    number = ((number ^ number >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    number = ((number ^ number >> 27) * 0x94D049BB133111EB) & _WORD
    return number ^ number >> 31
