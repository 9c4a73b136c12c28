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


def probe_device(device: torch.device) -> None:
    """Check that ``device`` computes what the reference needs of it; synchronises with it.

    Raises:
        RuntimeError: an operation is missing, or gives another result than the CPU.
    """
    from domain_pretrain.kernels.domain_reduce import reference
    from domain_pretrain.stats import Column

    def sums(device: torch.device | str) -> torch.Tensor:
        losses = torch.tensor([[0.1, 2.5, 3e6, 7.0], [torch.nan, torch.inf, 1e-3, 1e5]])
        mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.5, 1.0]])
        ids = torch.tensor([[0, 1, 1, 2], [-1, 0, 3, 1]])
        accumulator = torch.full((4, len(Column)), 2**40 + 1, device=device)
        losses, mask, ids = losses.to(device), mask.to(device), ids.to(device)
        tokens = mask.sum(dim=1)
        for domains in (ids, ids[:, 1].contiguous()):
            reference.domain_reduce(accumulator, losses, mask, domains, 1.0 / tokens)
        reference.count_samples(accumulator, ids[:, 0].contiguous(), tokens)
        return torch.cat([accumulator, unpack_limbs(pack_limbs(-accumulator))]).cpu()

    try:
        got = sums(device)
    except Exception as error:
        raise RuntimeError(
            f"{device} cannot run the per-domain sums ({error}): the channel loss needs exact "
            "int64 index_add_, shifts and float → int64 rounding there"
        ) from error
    expected = sums("cpu")
    if not torch.equal(got, expected):
        raise RuntimeError(
            f"{device} does not compute the per-domain sums exactly: got {got.tolist()}, "
            f"expected {expected.tolist()}; the channel loss cannot be trusted there"
        )


def probe_all_reduce(device: torch.device, group: Any = None) -> bool:
    """Whether ``group`` adds int64 exactly; called by all of its ranks, which get one answer.

    Two small all-reduces over ``group``, once at start-up; synchronises with the device.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    base = 2**53 + 1  # a detour over float64 would lose the 1
    try:
        value = torch.tensor([base + rank, -base - rank], device=device)
        dist.all_reduce(value, group=group)
        total = ranks * base + ranks * (ranks - 1) // 2
        exact = value.tolist() == [total, -total]
    except RuntimeError:  # "unsupported data type": on every rank alike, before anything is sent
        exact = False
    agreed = torch.tensor([int(exact)], dtype=torch.int32, device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=group)
    return bool(agreed.item())
