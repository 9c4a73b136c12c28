"""The gradient of the loss, for every backend: ``w[domain]·(grad·mask)``; the sums have none."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from domain_pretrain.kernels.domain_reduce.contract import DomainLoss, Kernels, Tokens


class WithGradient(torch.autograd.Function):
    """``Kernels.domain_loss`` with its gradient to ``tokens.losses``.

    Torch finds the tensors of an ``apply`` only outside records: ``fields`` are those of
    :class:`Tokens`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        accumulator: torch.Tensor | None,
        multipliers: torch.Tensor | None,
        host_loss: torch.Tensor | None,
        totals: torch.Tensor | None,
        *fields: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The fields of :class:`DomainLoss`."""
        tokens = Tokens(*fields)
        loss, report, num_tokens = kernels.domain_loss(
            accumulator, tokens, multipliers, host_loss, totals
        )
        ctx.save_for_backward(tokens.mask, tokens.ids, multipliers)
        ctx.kernels = kernels
        ctx.mark_non_differentiable(report, num_tokens)
        ctx.set_materialize_grads(False)  # theirs would be a launch each, of zeros
        return loss, report, num_tokens

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradient of ``losses``, the first of the fields, from that of the scalar loss."""
        mask, ids, multipliers = ctx.saved_tensors
        gradient = ctx.kernels.loss_gradient(grads[0], mask, ids, multipliers)
        return *[None] * 5, gradient, *[None] * 4


def domain_loss(
    kernels: Kernels,
    accumulator: torch.Tensor | None,
    tokens: Tokens,
    multipliers: torch.Tensor | None,
    *,
    host_loss: torch.Tensor | None = None,
    totals: torch.Tensor | None = None,
) -> DomainLoss:
    """Apply :class:`WithGradient` to fp32; the gradient of a cast is torch's."""
    tokens = tokens._replace(losses=tokens.losses.float())
    found = WithGradient.apply(kernels, accumulator, multipliers, host_loss, totals, *tokens)
    return DomainLoss(*found)
