"""int64 sums over a collective library that adds only int32: in limbs of at most 31 bits.

``unpack(Σ pack(x)) == Σ x`` for any number of ranks, if Σ x itself fits int64. With
limbs of b bits, b + ⌈log2 ranks⌉ <= 31:

* x is the sum of its limbs times 2^0, 2^b, 2^2b, …; all but the last are in [0, 2^b); the last has
  the sign (two's complement: the arithmetic shift is a floor).
* ranks·(2^b - 1) < 2^31, so no limb's sum overflows int32.
* The limbs' sums are combined modulo 2^64, where Σ x is unique.

That makes three limbs up to 512 ranks, four up to 32,768.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def limb_bits(ranks: int) -> int:
    """The width of limbs whose sums over ``ranks`` ranks fit int32."""
    return 31 - (ranks - 1).bit_length()


def pack_limbs(values: torch.Tensor, bits: int) -> torch.Tensor:
    """int64 ``[...]`` → int32 ``[ceil(64 / bits), ...]``, lowest limb first."""
    shifts = range(0, 64, bits)
    limbs = [(values >> shift) & (2**bits - 1) for shift in shifts[:-1]]
    return torch.stack([*limbs, values >> shifts[-1]]).to(torch.int32)


def unpack_limbs(limbs: torch.Tensor, bits: int) -> torch.Tensor:
    """The int64 ``[...]`` of summed int32 ``[ceil(64 / bits), ...]``."""
    values = torch.zeros_like(limbs[0], dtype=torch.int64)
    for shift, limb in zip(range(0, 64, bits), limbs.to(torch.int64), strict=True):
        values += limb << shift
    return values


def all_reduce_limbs(values: torch.Tensor, group: Any = None) -> None:
    """Sum int64 ``values`` over ``group``, in place, as int32.

    One all-reduce over ``group``; payload ``12·numel`` bytes up to 512 ranks.
    """
    bits = limb_bits(dist.get_world_size(group))
    limbs = pack_limbs(values, bits)
    dist.all_reduce(limbs, group=group)
    values.copy_(unpack_limbs(limbs, bits))
