"""What every backend of the reduction promises: the fixed-point grid, its range, the shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch

from domain_pretrain.stats import SCALE, Column

FIXED = SCALE[Column.LOSS]
"""Units per nat and per token. A power of two, so that in fp32 ``losses * (mask * FIXED)`` has the
bits of ``(losses * mask) * FIXED``."""

LIMIT = 2.0**20
"""A token with ``|mask·loss|`` above this is flagged and not accumulated: no cross entropy is that
large, and the int64 sums must not overflow (2^39 nats in all)."""

TOTAL_LIMIT = 2.0**38
"""A microbatch's loss sum above this, or NaN, adds 0 to ``totals``."""

SAMPLE_SCALE = SCALE[Column.SAMPLE_LOSS] / FIXED
"""From the grid of the losses to that of the samples' means."""


class DomainLoss(NamedTuple):
    """The loss of one microbatch, as Megatron's schedules take it from a loss function.

    Attributes:
        loss: fp32 scalar, Σ w[domain]·mask·loss; carries the gradient. A tensor of its own, no
            view: the schedules divide it in place.
        report: fp32 ``[2]``: Σ mask·loss, unweighted, and Σ mask. No gradient.
        num_tokens: int32 scalar, Σ mask, fractions cut off. No gradient.
    """

    loss: torch.Tensor
    report: torch.Tensor
    num_tokens: torch.Tensor


def check_reduce(
    accumulator: torch.Tensor,
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    inverse_row_tokens: torch.Tensor,
    row_tokens: torch.Tensor | None,
) -> None:
    """Raise ValueError unless all arguments of a reduction fit together."""
    check_accumulator(accumulator)
    check_tokens(losses, mask, ids)
    shape = losses.shape
    if inverse_row_tokens.shape not in (shape, shape[:1]):
        raise ValueError(
            f"inverse_row_tokens must be [b] or [b, s] of {tuple(shape)}, "
            f"got {tuple(inverse_row_tokens.shape)}"
        )
    if row_tokens is not None:
        check_samples(ids, row_tokens)


def check_loss(
    accumulator: torch.Tensor | None,
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    inverse_row_tokens: torch.Tensor | None,
    multipliers: torch.Tensor | None,
    row_tokens: torch.Tensor | None,
    host_loss: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the arguments of a loss fit together."""
    check_scalar(host_loss, torch.float32, "host_loss")
    if accumulator is None:
        check_tokens(losses, mask, ids)
    else:
        if inverse_row_tokens is None:
            raise ValueError("an accumulator needs inverse_row_tokens, too")
        check_reduce(accumulator, losses, mask, ids, inverse_row_tokens, row_tokens)
    if multipliers is not None:
        domains = multipliers.shape[0] if accumulator is None else accumulator.shape[0] - 1
        if multipliers.dtype != torch.float32 or multipliers.shape != (domains,):
            raise ValueError(
                f"multipliers must be fp32 [D], one for each of {domains} domains, "
                f"got {multipliers.dtype} {tuple(multipliers.shape)}"
            )


def check_totals(totals: torch.Tensor | None) -> None:
    """Raise ValueError unless ``totals`` is contiguous int64 ``[3]``."""
    if totals is not None and (
        totals.dtype != torch.int64 or totals.shape != (3,) or not totals.is_contiguous()
    ):
        raise ValueError(
            f"totals must be contiguous int64 [3], got {totals.dtype} {tuple(totals.shape)}"
        )


def check_host(
    totals: torch.Tensor | None, host_loss: torch.Tensor | None, host_tokens: torch.Tensor | None
) -> None:
    """Raise ValueError unless the host's sums fit, and the buffer that takes them."""
    if not (totals is None) == (host_loss is None) == (host_tokens is None):
        raise ValueError("totals, host_loss and host_tokens must be given together, or none")
    check_totals(totals)
    check_scalar(host_loss, torch.float32, "host_loss")
    check_scalar(host_tokens, torch.int32, "host_tokens")


def check_scalar(value: torch.Tensor | None, dtype: torch.dtype, name: str) -> None:
    """Raise ValueError unless a value of the host's is a scalar of its type."""
    if value is not None and (value.dtype != dtype or value.dim() != 0):
        raise ValueError(
            f"{name} must be a scalar of {dtype}, got {value.dtype} {tuple(value.shape)}"
        )


def check_accumulator(accumulator: torch.Tensor) -> None:
    """Raise ValueError unless ``accumulator`` is contiguous int64 ``[D + 1, len(Column)]``."""
    shape = accumulator.shape
    if (
        accumulator.dtype != torch.int64
        or len(shape) != 2
        or shape[1] != len(Column)
        or not accumulator.is_contiguous()
    ):
        raise ValueError(
            f"accumulator must be contiguous int64 [D + 1, {len(Column)}], "
            f"got {accumulator.dtype} {tuple(shape)}"
        )


def check_tokens(losses: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> None:
    """Raise ValueError unless losses and mask are ``[b, s]`` and ids ``[b]`` or ``[b, s]``."""
    shape = losses.shape
    if len(shape) != 2 or mask.shape != shape:
        raise ValueError(
            f"losses and mask must both be [b, s], got {tuple(shape)} and {tuple(mask.shape)}"
        )
    if ids.shape not in (shape, shape[:1]):
        raise ValueError(f"ids must be [b] or [b, s] of {tuple(shape)}, got {tuple(ids.shape)}")


def check_samples(ids: torch.Tensor, row_tokens: torch.Tensor) -> None:
    """Raise ValueError unless ids and row_tokens are both ``[b]``."""
    if ids.dim() != 1 or row_tokens.shape != ids.shape:
        raise ValueError(
            f"to count samples, ids and row_tokens must both be [b], "
            f"got {tuple(ids.shape)} and {tuple(row_tokens.shape)}"
        )
