"""The operations of the reduction, and the choice of the backend that runs them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import reference
from domain_pretrain.kernels.domain_reduce.contract import (
    DomainLoss,
    HostResult,
    Inputs,
    Kernels,
    Tokens,
)

logger = logging.getLogger(__name__)

Name = Literal["auto", "reference", "cuda"]
NO_HOST = (None, None, None)


@dataclass(frozen=True)
class Backend:
    """The operations of one backend. None of them synchronises with the host.

    ``accumulator``: contiguous int64 ``[D + 1, len(Column)]``, on the device of the tokens, added
    to in place; row D takes the tokens whose id is outside [0, D).

    Attributes:
        name: ``reference`` or ``cuda``.
    """

    name: str
    _kernels: Kernels

    @property
    def fused(self) -> bool:
        """Whether ``domain_loss`` is cheaper than the operations of a host's loss function."""
        return self.name == "cuda"

    def domain_reduce(
        self, accumulator: torch.Tensor, tokens: Tokens, host: HostResult | None = None
    ) -> None:
        """Add the sums of one microbatch to ``accumulator``. CUDA: one launch.

        Args:
            accumulator: see the class.
            tokens: of the microbatch, with ``inverse_row_tokens``.
            host: is added to its totals, in the same launch.
        """
        totals, loss, num_tokens = NO_HOST if host is None else host
        self._kernels.reduce(Inputs(*tokens, None, loss, num_tokens, accumulator, totals))

    def count_samples(
        self, accumulator: torch.Tensor, ids: torch.Tensor, row_tokens: torch.Tensor
    ) -> None:
        """Count the samples that carry loss tokens, by domain: ``ids [b]``, ``row_tokens [b]``.

        For rows that were joined and cut; it is plain torch in every backend. Call it on one
        context-parallel rank only: all of them read the same rows.
        """
        reference.count_samples(accumulator, ids, row_tokens)

    def weighted_loss(
        self,
        tokens: Tokens,
        multipliers: torch.Tensor,
        *,
        host_loss: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Σ multiplier[domain]·mask·loss, fp32 scalar. CUDA: one launch, and one in backward.

        The gradient is ``multiplier[domain]·(grad·mask)``: where all multipliers are 1 it has the
        bits of that of ``torch.sum(losses.float() * mask)``. The value is summed in fixed point,
        NaN where a token was flagged. An invalid id weighs 0.

        Args:
            tokens: losses, mask and ids are enough.
            multipliers: fp32 ``[D]``, finite.
            host_loss: fp32 scalar, the host's own Σ mask·loss. Then the value is
                ``host_loss + Σ (multiplier - 1)·mask·loss``: the host's bits where all are 1.
        """
        return self._loss(Inputs(*tokens, multipliers, host_loss, None, None, None)).loss

    def domain_loss(
        self,
        accumulator: torch.Tensor,
        tokens: Tokens,
        multipliers: torch.Tensor | None = None,
        *,
        totals: torch.Tensor | None = None,
    ) -> DomainLoss:
        """``domain_reduce`` and the loss at once. CUDA: one launch, and one in backward.

        It replaces the sums and casts of the host's loss function.

        Args:
            accumulator: see the class.
            tokens: of the microbatch, with ``inverse_row_tokens``.
            multipliers: as in ``weighted_loss``. Without, every token weighs 1, those with an
                invalid id too.
            totals: as in :class:`HostResult`; takes the unweighted loss and the tokens found here.
        """
        return self._loss(Inputs(*tokens, multipliers, None, None, accumulator, totals))

    def _loss(self, inputs: Inputs) -> DomainLoss:
        losses = inputs.losses.float()  # the gradient of a cast is torch's
        if losses is not inputs.losses:
            inputs = inputs._replace(losses=losses)
        ungraded: list[torch.Tensor] = []
        loss = WithGradient.apply(losses, self._kernels, inputs, ungraded)
        return DomainLoss(loss, *ungraded)


class WithGradient(torch.autograd.Function):
    """``Kernels.loss`` with its gradient to ``losses``, which are ``inputs.losses``.

    The rest of the inputs needs no gradient, so torch need not look for it among the arguments; nor
    does the rest of a :class:`DomainLoss`, so it need not pass through torch.
    """

    @staticmethod
    def forward(
        ctx: Any,
        losses: torch.Tensor,
        kernels: Kernels,
        inputs: Inputs,
        ungraded: list[torch.Tensor],
    ) -> torch.Tensor:
        """The loss; ``ungraded`` takes the report and the number of tokens."""
        loss, *ungraded[:] = kernels.loss(inputs)
        ctx.kernels = kernels
        ctx.save_for_backward(inputs.mask, inputs.ids, inputs.multipliers)
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """``w[domain]·(grad·mask)``."""
        # The check costs as much as the launch, and nothing else differentiates twice.
        return (_once if torch.is_grad_enabled() else _backward)(ctx, grad)


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return ctx.kernels.gradient(grad, *ctx.saved_tensors), None, None, None


_once = once_differentiable(_backward)


@cache
def select(name: Name = "auto", device: torch.device | None = None) -> Backend:
    """The backend ``name``; ``auto`` is ``cuda`` where it can run, else ``reference``.

    Call it after the process has chosen its CUDA device. Logs the choice, once.

    Args:
        name: ``auto``, ``reference`` or ``cuda``.
        device: where the losses will be; None for the current CUDA device, if there is one.

    Raises:
        UnsupportedError: ``cuda`` was asked for and cannot run there; the message says why.
        ValueError: no such backend.
    """
    if name not in ("auto", "reference", "cuda"):
        raise ValueError(f"backend must be auto, reference or cuda, got {name!r}")
    why = "asked for by name"
    if name != "reference":
        try:
            backend = _cuda(device)
            logger.info("domain_reduce: cuda kernels")
            return backend
        except UnsupportedError as error:
            if name == "cuda":
                raise
            why = str(error)
    logger.info("domain_reduce: reference (%s)", why)
    return Backend("reference", reference)


def _cuda(device: torch.device | None) -> Backend:
    if device is not None and device.type != "cuda":
        raise UnsupportedError(f"the losses are on {device.type}")
    if torch.version.cuda is None or not torch.cuda.is_available():
        raise UnsupportedError("no CUDA device")
    from domain_pretrain.kernels.domain_reduce import cuda, driver
    from domain_pretrain.kernels.domain_reduce.kernel_launch import Variant

    index = None if device is None else device.index
    driver.device(torch.cuda.current_device() if index is None else index).kernel(Variant("reduce"))
    return Backend("cuda", cuda)
