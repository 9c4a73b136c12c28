"""Per-domain sums of the language-model loss: one contract, a reference and a CUDA backend.

:func:`select` gives the backend. Its operations take the per-token losses of one microbatch and
work without a host sync. Sums are int64 fixed point (``stats.SCALE``): they have the same bits for
every split over microbatches and ranks, and in every backend.

Common arguments, all on the device of ``losses``:

* ``accumulator``: contiguous int64 ``[D + 1, len(Column)]``, added to in place; row D takes the
  tokens whose id is outside [0, D).
* ``losses``: ``[b, s]``, any strides, fp32, bf16 or fp16, nats; computed in fp32.
* ``mask``: ``[b, s]``, finite, may be fractional. A masked token counts nowhere, unless its loss
  is not finite (0·NaN is NaN for the host, too). A token with |mask·loss| > 2^20, or NaN, is
  counted in ``Column.NONFINITE`` and left out of the loss sums, not out of the token sum.
* ``ids``: integer, ``[b]`` (one domain a row) or ``[b, s]``.
* ``inverse_row_tokens``: ``[b]`` or ``[b, s]``, finite: 1 / (loss tokens of the token's whole
  sample, before context parallelism cut it), for the sample average.
* ``row_tokens``: ``[b]``, loss tokens of each whole row. Given on the one context-parallel rank
  that counts samples, and only with ids ``[b]``; packed samples: ``count_samples``.
* ``totals``: contiguous int64 ``[3]``, added to in place: the loss sum of the microbatch in units
  of ``stats.SCALE``, its tokens, and 1. ``host_loss`` (fp32 scalar) and ``host_tokens`` (int32
  scalar) are what the host's own loss function found; a loss that is not finite adds 0.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import autograd, reference
from domain_pretrain.kernels.domain_reduce.contract import DomainLoss

__all__ = [
    "Backend",
    "DomainLoss",
    "select",
]

logger = logging.getLogger(__name__)

Name = Literal["auto", "reference", "cuda"]


@dataclass(frozen=True)
class Backend:
    """The operations of one backend; see the module for their common arguments.

    Attributes:
        name: ``reference`` or ``cuda``.
    """

    name: str
    _kernels: Any

    @property
    def fused(self) -> bool:
        """Whether ``domain_loss`` is cheaper than the operations of a host's loss function."""
        return self.name == "cuda"

    def domain_reduce(
        self,
        accumulator: torch.Tensor,
        losses: torch.Tensor,
        mask: torch.Tensor,
        ids: torch.Tensor,
        inverse_row_tokens: torch.Tensor,
        *,
        row_tokens: torch.Tensor | None = None,
        totals: torch.Tensor | None = None,
        host_loss: torch.Tensor | None = None,
        host_tokens: torch.Tensor | None = None,
    ) -> None:
        """Add the sums of one microbatch to ``accumulator``. CUDA: one launch.

        Args:
            totals: with ``host_loss`` and ``host_tokens``, which are added to it.
        """
        self._kernels.domain_reduce(
            accumulator,
            losses,
            mask,
            ids,
            inverse_row_tokens,
            row_tokens,
            totals,
            host_loss,
            host_tokens,
        )

    def count_samples(
        self, accumulator: torch.Tensor, ids: torch.Tensor, row_tokens: torch.Tensor
    ) -> None:
        """Count the samples that carry loss tokens, by domain: ``ids [b]``, ``row_tokens [b]``.

        Call it on one context-parallel rank only: all of them read the same rows.
        """
        self._kernels.count_samples(accumulator, ids, row_tokens)

    def weighted_loss(
        self,
        losses: torch.Tensor,
        mask: torch.Tensor,
        ids: torch.Tensor,
        multipliers: torch.Tensor,
        *,
        host_loss: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Σ multiplier[domain]·mask·loss, fp32 scalar. CUDA: one launch, and one in backward.

        The gradient is ``multiplier[domain]·(grad·mask)``: where all multipliers are 1 it has the
        bits of that of ``torch.sum(losses.float() * mask)``. The value is summed in fixed point,
        NaN where a token was flagged. An invalid id weighs 0.

        Args:
            multipliers: fp32 ``[D]``, finite.
            host_loss: fp32 scalar, the host's own Σ mask·loss. Then the value is
                ``host_loss + Σ (multiplier - 1)·mask·loss``: the host's bits where all are 1.
        """
        return self._loss(losses, mask, ids, multipliers, None, None, None, host_loss, None).loss

    def domain_loss(
        self,
        accumulator: torch.Tensor,
        losses: torch.Tensor,
        mask: torch.Tensor,
        ids: torch.Tensor,
        inverse_row_tokens: torch.Tensor,
        multipliers: torch.Tensor | None = None,
        *,
        row_tokens: torch.Tensor | None = None,
        totals: torch.Tensor | None = None,
    ) -> DomainLoss:
        """``domain_reduce`` and the loss at once. CUDA: one launch, and one in backward.

        For a loss function of one's own: it replaces the host's sums and casts. Without
        ``multipliers`` every token weighs 1, those with an invalid id too.

        Args:
            totals: takes the unweighted loss and the tokens of this very loss.
        """
        return self._loss(
            losses,
            mask,
            ids,
            multipliers,
            accumulator,
            inverse_row_tokens,
            row_tokens,
            None,
            totals,
        )

    def _loss(self, losses: torch.Tensor, *arguments: torch.Tensor | None) -> DomainLoss:
        return autograd.domain_loss(self._kernels, losses, *arguments)


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
    from domain_pretrain.kernels.domain_reduce.launch import Variant

    index = None if device is None else device.index
    driver.device(torch.cuda.current_device() if index is None else index).kernel(Variant("reduce"))
    return Backend("cuda", cuda)
