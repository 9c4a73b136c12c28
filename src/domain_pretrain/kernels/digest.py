"""A digest of a vector, made where the vector is, in exact integers.

It is what ranks compare to prove that they agree: see ``flow/agreement.py``. Three words d of 20
bits; all N ranks have the same exactly if N·Σd² = (Σd)², which needs nothing but sums.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

WORDS = 3
# The largest prime below 2^20: Σd² over 2^20 ranks stays in int64.
PRIME = 2**20 - 3


class Digest:
    """Digests of what is in force on this rank.

    Args:
        constants: what must be the same on every rank all run long: the config, the domains.
        device: where the digests are made, without reading anything back.
    """

    def __init__(self, constants: str, device: torch.device) -> None:
        self._constants = hashlib.sha256(constants.encode(errors="surrogatepass"))
        self._device = device
        self._salt = self._made()
        self._coefficients = torch.empty(0)

    def note(self, text: str) -> None:
        """Add to what must be the same, from now on; rare, unlike what is in force.

        Args:
            text: any.
        """
        self._constants.update(text.encode(errors="surrogatepass"))
        self._salt = self._made()

    def _made(self) -> torch.Tensor:
        digest = self._constants.digest()
        salt = [int.from_bytes(digest[4 * k : 4 * k + 4], "big") % PRIME for k in range(WORDS)]
        return torch.tensor(salt, device=self._device)

    def of(self, in_force: torch.Tensor | None) -> torch.Tensor:
        """int64 ``[WORDS]``, each in [0, PRIME).

        Args:
            in_force: fp32 ``[n]``; None where the constants are all there is.
        """
        if in_force is None:
            return self._salt
        bits = in_force.detach().float().contiguous().view(torch.int32).to(torch.int64)
        halves = torch.stack([bits & 0xFFFF, (bits >> 16) & 0xFFFF])  # [2, n]
        return ((self._factors(halves) * halves).sum(dim=(1, 2)) + self._salt) % PRIME

    def _factors(self, halves: torch.Tensor) -> torch.Tensor:
        """``[WORDS, 2, n]`` fixed factors in [1, PRIME): products of 36 bits, sums that fit."""
        shape = (WORDS, *halves.shape)
        if self._coefficients.shape != shape:
            factors = 1 + _scattered(WORDS * halves.numel()) % np.uint64(PRIME - 1)
            table = torch.from_numpy(factors.astype(np.int64))
            self._coefficients = table.view(shape).to(halves.device)
        return self._coefficients


def _scattered(count: int) -> NDArray[np.uint64]:
    """``count`` numbers without any linear relation: differences that cancel in one word of a
    digest do not in the others. splitmix64 (Steele et al., OOPSLA 2014), modulo 2^64.
    """
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def moments(words: torch.Tensor) -> torch.Tensor:
    """int64 ``[2 * WORDS]``: the words and their squares, to be summed over ranks."""
    return torch.cat([words, words * words])
