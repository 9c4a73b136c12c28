"""The operations of the reduction, and the choice of the backend that runs them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import torch
from torch.autograd.function import once_differentiable
from torch.compiler import is_dynamo_compiling

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import reference
from domain_pretrain.kernels.domain_reduce.contract import DomainLoss, Inputs, Kernels

logger = logging.getLogger(__name__)

Name = Literal["auto", "reference", "cuda"]


@dataclass(frozen=True)
class Backend:
    """The operations of one backend. None of them synchronises with the host.

    Attributes:
        name: ``reference`` or ``cuda``.
    """

    name: str
    _kernels: Kernels

    @cached_property
    def fused(self) -> bool:
        """Whether ``domain_loss`` is cheaper than the operations of a host's loss function."""
        return self.name == "cuda"

    def domain_reduce(self, inputs: Inputs) -> None:
        """Add the sums of one microbatch to ``accumulator``, and what the host found to ``totals``.

        CUDA: one launch. ``host_loss``, ``host_num_tokens`` and ``totals`` are given together or
        not at all; multipliers do not count.
        """
        self._kernels.reduce(inputs)

    def domain_loss(self, inputs: Inputs) -> DomainLoss:
        """The loss; its sums, and itself, unweighted, or what the host found, are added to
        ``accumulator`` and ``totals``, if given. CUDA: one launch, and one in backward.

        The loss is Σ multiplier[domain]·mask·loss, summed in fixed point; NaN where a token was
        flagged. Its gradient is ``multiplier[domain]·(grad·mask)``: where all multipliers are 1 it
        has the bits of that of ``torch.sum(losses.float() * mask)``. It replaces the sums and casts
        of the host's loss function.

        With ``host_loss``, the loss is ``host_loss + Σ (multiplier - 1)·mask·loss``: the host's
        bits where all multipliers are 1. ``totals`` take it with ``host_num_tokens``, or neither.
        """
        ungraded: list[torch.Tensor] = []
        loss = WithGradient.apply(inputs.losses, self._kernels, inputs, ungraded)
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
        (loss, *ungraded[:]), kept = kernels.loss(inputs)
        mask = inputs.mask
        counts = not (is_dynamo_compiling() or mask.is_inference())
        ctx.kept = kernels, kept, mask, mask._version if counts else None
        return loss

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        """``w[domain]·(grad·mask)``."""
        if torch.is_grad_enabled():  # to differentiate twice; else the check costs a launch
            return _once(ctx, grad)
        # As of saved tensors, but these take more than twice the launch. The rest of what the
        # gradient reads is ours.
        kernels, kept, mask, version = ctx.kept
        if version is not None and mask._version != version:
            raise RuntimeError(
                "the mask was modified by an inplace operation after the loss was made of it, and "
                "the gradient needs it as it was: give the loss a clone"
            )
        return kernels.gradient(grad, kept), None, None, None


_once = once_differentiable(WithGradient.backward)


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
