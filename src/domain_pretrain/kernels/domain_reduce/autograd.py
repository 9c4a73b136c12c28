"""The gradient of the loss, for every backend: ``w[domain]·(grad·mask)``, nothing for the sums."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from domain_pretrain.kernels.domain_reduce.contract import DomainLoss


class Kernels(Protocol):
    """What a backend brings: the values, without gradients."""

    def domain_loss(
        self,
        accumulator: torch.Tensor | None,
        losses: torch.Tensor,
        mask: torch.Tensor,
        ids: torch.Tensor,
        inverse_row_tokens: torch.Tensor | None,
        multipliers: torch.Tensor | None,
        row_tokens: torch.Tensor | None,
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
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """``w[domain]·(grad·mask)`` as ``dtype``."""
        ...


class WithGradient(torch.autograd.Function):
    """``Kernels.domain_loss`` with its gradient to ``losses``."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        losses: torch.Tensor,
        mask: torch.Tensor,
        ids: torch.Tensor,
        multipliers: torch.Tensor | None,
        accumulator: torch.Tensor | None,
        inverse_row_tokens: torch.Tensor | None,
        row_tokens: torch.Tensor | None,
        host_loss: torch.Tensor | None,
        totals: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields of :class:`DomainLoss`."""
        loss, report, num_tokens = kernels.domain_loss(
            accumulator,
            losses,
            mask,
            ids,
            inverse_row_tokens,
            multipliers,
            row_tokens,
            host_loss,
            totals,
        )
        ctx.save_for_backward(mask, ids, multipliers)
        ctx.kernels, ctx.dtype = kernels, losses.dtype
        ctx.mark_non_differentiable(report, num_tokens)
        ctx.set_materialize_grads(False)  # theirs would be a launch each, of zeros
        return loss, report, num_tokens

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of ``losses`` from that of the scalar loss."""
        mask, ids, multipliers = ctx.saved_tensors
        gradient = ctx.kernels.loss_gradient(grads[0], mask, ids, multipliers, ctx.dtype)
        return None, gradient, *[None] * 8


def domain_loss(kernels: Kernels, losses: torch.Tensor, *arguments: Any) -> DomainLoss:
    """Apply :class:`WithGradient`."""
    return DomainLoss(*WithGradient.apply(kernels, losses, *arguments))
