"""The gradient of the loss, for every backend: ``w[domain]·(grad·mask)``; the sums have none."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from domain_pretrain.kernels.domain_reduce.contract import Inputs, Kernels, Scalars


class WithGradient(torch.autograd.Function):
    """``Kernels.loss`` with its gradient to ``losses``, which are ``inputs.losses``.

    The rest of the inputs needs no gradient, so torch need not look for it among the arguments.
    """

    @staticmethod
    def forward(ctx: Any, losses: torch.Tensor, kernels: Kernels, inputs: Inputs) -> Scalars:
        """The fields of :class:`DomainLoss`."""
        loss, report, num_tokens = kernels.loss(Inputs(losses, *inputs[1:]))
        ctx.kernels = kernels
        ctx.save_for_backward(inputs.mask, inputs.ids, inputs.multipliers)
        ctx.mark_non_differentiable(report, num_tokens)
        ctx.set_materialize_grads(False)  # theirs would be a launch each, of zeros
        return loss, report, num_tokens

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Gradient of ``losses`` from that of the scalar loss."""
        # The check costs as much as the launch, and nothing else differentiates twice.
        return (_once if torch.is_grad_enabled() else _backward)(ctx, grads[0])


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return ctx.kernels.gradient(grad, *ctx.saved_tensors), None, None


_once = once_differentiable(_backward)
