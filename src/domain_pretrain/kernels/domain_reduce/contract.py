"""What every backend of the reduction promises: records, shapes, the fixed-point grid."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from domain_pretrain.stats import SCALE, Column

FIXED = SCALE[Column.LOSS]
"""Units per nat and per token. A power of two, so that in fp32 ``losses * (mask * FIXED)`` has the
bits of ``(losses * mask) * FIXED``."""

LIMIT = 2.0**20
"""A token with ``|mask·loss|`` above this is flagged and not accumulated: no cross entropy is that
large, and the int64 sums must not overflow (2^39 nats in all)."""

TOTAL_LIMIT = 2.0**38
"""A microbatch's loss sum above this, or NaN, adds 0 to the totals."""

SAMPLE_SCALE = SCALE[Column.SAMPLE_LOSS] / FIXED
"""From the grid of the losses to that of the samples' means."""


class Tokens(NamedTuple):
    """The tokens of one microbatch; with all else that a call takes, on one device.

    Attributes:
        losses: ``[b, s]``, nats, fp32 as Megatron's cross entropy returns them; others are cast.
        mask: ``[b, s]``, finite, may be fractional. A masked token counts nowhere, unless its loss
            is not finite (0·NaN is NaN for the host, too). A token with |mask·loss| > ``LIMIT``, or
            NaN, is counted in ``Column.NONFINITE`` and left out of the loss sums, but not out of
            the token sum.
        ids: int32, ``[b]`` (one domain per row) or ``[b, s]``.
        inverse_row_tokens: of the shape of ``ids``, finite: 1 / (loss tokens of the whole sample,
            before context parallelism cut it), for the sample average. Not needed for the loss
            alone.
        row_tokens: ``[b]``, loss tokens of each whole row: its sample is counted if it has any.
            Given on the one context-parallel rank that counts samples, and only with ids ``[b]``;
            packed samples are counted by ``count_samples``.
    """

    losses: torch.Tensor
    mask: torch.Tensor
    ids: torch.Tensor
    inverse_row_tokens: torch.Tensor | None = None
    row_tokens: torch.Tensor | None = None


class HostResult(NamedTuple):
    """What the host's own loss function found for a microbatch, and the totals that take it.

    Attributes:
        totals: contiguous int64 ``[3]``, added to in place: the microbatch's loss sum in units of
            1 / ``FIXED`` nats (0 if it is not finite or above ``TOTAL_LIMIT``), its tokens, and 1.
        loss: fp32 scalar, Σ mask·loss.
        num_tokens: int32 scalar.
    """

    totals: torch.Tensor
    loss: torch.Tensor
    num_tokens: torch.Tensor


class DomainLoss(NamedTuple):
    """The loss of one microbatch, as Megatron's schedules take it from a loss function.

    Attributes:
        loss: fp32 scalar, Σ w[domain]·mask·loss; carries the gradient. Not a view: the
            schedules divide it in place.
        report: fp32 ``[2]``: Σ mask·loss, unweighted, and Σ mask. No gradient.
        num_tokens: int32 scalar, Σ mask, rounded toward zero. No gradient.
    """

    loss: torch.Tensor
    report: torch.Tensor
    num_tokens: torch.Tensor


class Kernels(Protocol):
    """What a backend's module brings: the values, without gradients. See :class:`Backend`."""

    def domain_reduce(
        self, accumulator: torch.Tensor, tokens: Tokens, host: HostResult | None
    ) -> None:
        """Add the sums of one microbatch to ``accumulator``, and ``host`` to its totals."""
        ...

    def domain_loss(
        self,
        accumulator: torch.Tensor | None,
        tokens: Tokens,
        multipliers: torch.Tensor | None,
        host_loss: torch.Tensor | None,
        totals: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add to ``accumulator`` and ``totals``, if given; the fields of :class:`DomainLoss`."""
        ...

    def loss_gradient(
        self,
        grad: torch.Tensor,
        mask: torch.Tensor,
        ids: torch.Tensor,
        multipliers: torch.Tensor | None,
    ) -> torch.Tensor:
        """``w[domain]·(grad·mask)``, fp32 ``[b, s]``."""
        ...


def check_reduce(accumulator: torch.Tensor, tokens: Tokens, host: HostResult | None) -> None:
    """Raise ValueError unless the arguments of ``domain_reduce`` fit together."""
    _check_sums(accumulator, tokens)
    if host is not None:
        check_host(host)
        _check_device(tokens.losses, totals=host.totals, loss=host.loss, num_tokens=host.num_tokens)


def check_loss(
    accumulator: torch.Tensor | None,
    tokens: Tokens,
    multipliers: torch.Tensor | None,
    host_loss: torch.Tensor | None,
    totals: torch.Tensor | None,
) -> None:
    """Raise ValueError unless the arguments of ``domain_loss`` fit together."""
    if accumulator is None:
        check_tokens(tokens)
    else:
        _check_sums(accumulator, tokens)
    if multipliers is not None:
        domains = multipliers.shape[0] if accumulator is None else accumulator.shape[0] - 1
        if multipliers.dtype != torch.float32 or multipliers.shape != (domains,):
            raise ValueError(
                f"multipliers must be fp32 [D], one for each of {domains} domains, "
                f"got {multipliers.dtype} {tuple(multipliers.shape)}"
            )
    if host_loss is not None:
        _check_scalar(host_loss, torch.float32, "host_loss")
    if totals is not None:
        _check_totals(totals)
    _check_device(tokens.losses, multipliers=multipliers, host_loss=host_loss, totals=totals)


def check_tokens(tokens: Tokens) -> None:
    """Raise ValueError unless the fields of :class:`Tokens` have the shapes that it names."""
    losses, mask, ids, inverse, row_tokens = tokens
    shape = losses.shape
    if len(shape) != 2 or mask.shape != shape:
        raise ValueError(
            f"losses and mask must both be [b, s], got {tuple(shape)} and {tuple(mask.shape)}"
        )
    if ids.dtype != torch.int32 or ids.shape not in (shape, shape[:1]):
        raise ValueError(
            f"ids must be int32 [b] or [b, s] of {tuple(shape)}, got {ids.dtype} {tuple(ids.shape)}"
        )
    if inverse is not None and inverse.shape != ids.shape:
        raise ValueError(
            f"inverse_row_tokens must have the shape of the ids, {tuple(ids.shape)}, "
            f"got {tuple(inverse.shape)}"
        )
    if row_tokens is not None:
        _check_samples(ids, row_tokens)
    _check_device(losses, mask=mask, ids=ids, inverse_row_tokens=inverse, row_tokens=row_tokens)


def check_host(host: HostResult) -> None:
    """Raise ValueError unless the fields of :class:`HostResult` are as it says."""
    _check_totals(host.totals)
    _check_scalar(host.loss, torch.float32, "the host's loss")
    _check_scalar(host.num_tokens, torch.int32, "the host's num_tokens")


def check_count(accumulator: torch.Tensor, ids: torch.Tensor, row_tokens: torch.Tensor) -> None:
    """Raise ValueError unless the arguments of ``count_samples`` fit together."""
    _check_accumulator(accumulator)
    _check_samples(ids, row_tokens)
    _check_device(accumulator, ids=ids, row_tokens=row_tokens)


def _check_sums(accumulator: torch.Tensor, tokens: Tokens) -> None:
    _check_accumulator(accumulator)
    check_tokens(tokens)
    if tokens.inverse_row_tokens is None:
        raise ValueError("an accumulator needs inverse_row_tokens, too")
    _check_device(tokens.losses, accumulator=accumulator)


def _check_accumulator(accumulator: torch.Tensor) -> None:
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


def _check_device(reference: torch.Tensor, **others: torch.Tensor | None) -> None:
    """A kernel would follow another device's pointers, to an illegal access or to wrong sums."""
    device = reference.device
    for name, tensor in others.items():
        if tensor is not None and tensor.device != device:
            raise ValueError(
                f"{name} is on {tensor.device} and the other tensors are on {device}: "
                "all must be on one device"
            )


def _check_totals(totals: torch.Tensor) -> None:
    if totals.dtype != torch.int64 or totals.shape != (3,) or not totals.is_contiguous():
        raise ValueError(
            f"totals must be contiguous int64 [3], got {totals.dtype} {tuple(totals.shape)}"
        )


def _check_scalar(value: torch.Tensor, dtype: torch.dtype, name: str) -> None:
    if value.dtype != dtype or value.dim() != 0:
        raise ValueError(
            f"{name} must be a scalar of {dtype}, got {value.dtype} {tuple(value.shape)}"
        )


def _check_samples(ids: torch.Tensor, row_tokens: torch.Tensor) -> None:
    if ids.dim() != 1 or row_tokens.shape != ids.shape:
        raise ValueError(
            f"to count samples, ids and row_tokens must both be [b], "
            f"got {tuple(ids.shape)} and {tuple(row_tokens.shape)}"
        )
