"""Start-up checks of what a device and its collectives must do exactly.

For devices like Ascend NPUs, where exact int64 is not guaranteed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.digest import Digest, moments
from domain_pretrain.kernels.domain_reduce import Backend, Inputs, count_samples, reference
from domain_pretrain.kernels.exactness.transport import limb_bits, pack_limbs, unpack_limbs
from domain_pretrain.stats import Column

# Proven by the tests; any other device is checked at the start of a run.
TRUSTED = ("cpu", "cuda")


def require_device(device: torch.device, *, reweighting: bool) -> None:
    """Refuse a device that lacks what a run needs; synchronises with it.

    Raises:
        UnsupportedError: names what is missing.
    """
    if device.type in TRUSTED:
        return
    check_device(device)
    if reweighting and not computes_float64(device):
        raise UnsupportedError(
            f"{device} has no float64, which reweighting computes in; train without reweighting"
        )


def adds_int64(device: torch.device, group: Any) -> bool:
    """Whether int64 may travel over ``group`` as it is; called by all of its ranks.

    Args:
        group: None for a group of one.
    """
    return device.type in TRUSTED or group is None or all_reduces_int64(device, group)


def check_device(device: torch.device) -> None:
    """Check that ``device`` computes what the reference needs of it; synchronises with it.

    Raises:
        UnsupportedError: an operation is missing, or its result differs from the CPU's.
    """
    expected = _sums(torch.device("cpu"))
    try:
        got = _sums(device)
    except (RuntimeError, NotImplementedError) as error:
        raise UnsupportedError(
            f"{device} cannot run the per-domain sums, which need int64 index_add_, shifts, "
            f"remainders and exact rounding to int64: {error}"
        ) from error
    if not torch.equal(got, expected):
        raise UnsupportedError(
            f"{device} does not compute the per-domain sums exactly: got {got.tolist()}, "
            f"expected {expected.tolist()}"
        )


def computes_float64(device: torch.device) -> bool:
    """Whether ``device`` computes in float64 as the CPU does; synchronises with it."""

    def compute(device: torch.device) -> torch.Tensor:
        values = torch.tensor([2**53 - 1, 3, -(2**40)], device=device)
        return ((values.double() / 3).sqrt().sum() + values.double().sum()).cpu()

    try:
        got = compute(device)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
    return torch.allclose(got, compute(torch.device("cpu")), rtol=1e-14, equal_nan=True)


def all_reduces_int64(device: torch.device, group: Any = None) -> bool:
    """Whether ``group`` adds int64 exactly; called by all of its ranks, which get the same answer.

    Two small all-reduces over ``group``, once at start-up; synchronises with the device. Where the
    answer is no, int64 travels by ``transport.all_reduce_limbs``.
    """
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    base = 2**53 + 1  # a detour through float64 would lose the 1
    total = ranks * base + ranks * (ranks - 1) // 2
    try:
        value = torch.tensor([base + rank, -base - rank], device=device)
        dist.all_reduce(value, group=group)
        exact = value.tolist() == [total, -total]
    except RuntimeError:  # an unsupported type, on all ranks alike
        exact = False
    agreed = torch.tensor([int(exact)], dtype=torch.int32, device=device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MIN, group=group)
    return bool(agreed.item())


def _sums(device: torch.device) -> torch.Tensor:
    """All operations of the reference, on values that fp32 cannot hold, and of a digest; on CPU."""
    losses = torch.tensor([[0.1, 2.5, 3e6, 7.0], [torch.nan, torch.inf, 1e-3, 1e5]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.5, 1.0]])
    ids = torch.tensor([[0, 1, 1, 2], [-1, 0, 3, 1]], dtype=torch.int32)
    losses, mask, ids = losses.to(device), mask.to(device), ids.to(device)
    accumulator = torch.full((4, len(Column)), 2**40 + 1, dtype=torch.int64, device=device)
    backend, row_tokens = Backend("reference", reference), mask.sum(dim=1)
    inverse = 1.0 / row_tokens
    of_rows = torch.cat([ids[:, 1], inverse.view(torch.int32)])
    for known, of_tokens in ((ids, inverse[:, None].expand(ids.shape)), (of_rows, None)):
        backend.domain_reduce(Inputs(losses, mask, known, of_tokens, accumulator=accumulator))
    count_samples(accumulator, ids[:, 0].contiguous(), row_tokens)
    bits = limb_bits(512)
    words = moments(Digest("check", device).of(losses[0]))
    sums = torch.cat([accumulator, unpack_limbs(pack_limbs(-accumulator, bits), bits)])
    return torch.cat([sums.flatten(), words]).cpu()
