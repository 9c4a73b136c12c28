"""int64 sums over a backend that can only add int32: three limbs of 22 bits.

``unpack(Σ pack(x)) == Σ x`` for up to 512 ranks, whenever Σ x itself fits int64:

* x = low + 2^22·middle + 2^44·high with 0 <= low, middle < 2^22 and -2^19 <= high < 2^19 is exact
  (two's complement: the arithmetic shift is a floor).
* 512·(2^22 - 1) = 2^31 - 512 < 2^31, so no limb's sum overflows int32.
* The sums are put together mod 2^64, where Σ x is unique.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

LIMBS = 3
BITS = 22
MAX_RANKS = 2 ** (31 - BITS)


def pack_limbs(values: torch.Tensor) -> torch.Tensor:
    """int64 ``[...]`` → int32 ``[3, ...]``, to be summed over at most ``MAX_RANKS`` ranks."""
    low = 2**BITS - 1
    limbs = [values & low, (values >> BITS) & low, values >> 2 * BITS]
    return torch.stack(limbs).to(torch.int32)


def unpack_limbs(limbs: torch.Tensor) -> torch.Tensor:
    """The int64 ``[...]`` of summed int32 ``[3, ...]``."""
    low, middle, high = limbs.to(torch.int64).unbind(0)
    return low + (middle << BITS) + (high << 2 * BITS)


def all_reduce_limbs(values: torch.Tensor, group: Any = None) -> None:
    """Sum int64 ``values`` over ``group``, in place, as int32.

    One all-reduce over ``group``; payload ``12·numel`` bytes.

    Raises:
        ValueError: the group is too large for the limbs' sums to fit.
    """
    ranks = dist.get_world_size(group)
    if ranks > MAX_RANKS:
        raise ValueError(f"three 22-bit limbs are exact up to {MAX_RANKS} ranks, got {ranks}")
    limbs = pack_limbs(values)
    dist.all_reduce(limbs, group=group)
    values.copy_(unpack_limbs(limbs))
