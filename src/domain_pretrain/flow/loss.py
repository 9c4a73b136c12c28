"""Per-token losses of one microbatch → domain sums, and the loss that is differentiated."""

from __future__ import annotations

import torch

from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.flow.microbatch import Microbatch, Weights
from domain_pretrain.kernels.domain_reduce import Backend, DomainLoss, Inputs, count_samples

Host = tuple[torch.Tensor, torch.Tensor]
"""``(loss_sum, num_tokens)`` of the host's loss function."""


def count(backend: Backend, ledger: Ledger, microbatch: Microbatch, host: Host | None) -> None:
    """Add one microbatch to the ledger, beside the host's own loss: one launch on CUDA.

    Args:
        backend: of the reduction.
        ledger: of this rank, which counts.
        microbatch: of this rank.
        host: None if its loss function failed.
    """
    totals = None if host is None else ledger.host
    inputs = microbatch.inputs(None, *_scalars(host), ledger.layers[0], totals, count=True)
    backend.domain_reduce(inputs)
    _count_apart(ledger, microbatch)


def counted_loss(
    backend: Backend,
    ledger: Ledger,
    microbatch: Microbatch,
    weights: Weights | None,
    host: Host | None = None,
) -> DomainLoss:
    """Add one microbatch to the ledger and return its loss: one launch on CUDA, one in backward.

    It stands in for the host's loss function: its report is unweighted, as the host's would be. Or
    it is beside it: then its loss is :func:`weighted_loss`.

    Args:
        backend: of the reduction.
        ledger: of this rank, which counts.
        microbatch: with losses that carry the gradient.
        weights: of its samples, if any.
        host: where its loss function has run.
    """
    multipliers = weights.multipliers if weights is not None and weights.ids is None else None
    sums = ledger.layers[0]
    inputs = microbatch.inputs(multipliers, *_scalars(host), sums, ledger.host, count=True)
    found = backend.domain_loss(inputs)
    _count_apart(ledger, microbatch)
    if weights is None or weights.ids is None:
        return found
    return found._replace(loss=weighted_loss(backend, microbatch, weights, found.loss))


def weighted_loss(
    backend: Backend, microbatch: Microbatch, weights: Weights, host_loss: torch.Tensor
) -> torch.Tensor:
    """``Σ m·mask·loss``: a new fp32 scalar instead of the host's loss sum.

    Token counts and reports stay the host's. With multipliers of exactly 1 both the value and the
    gradient have the bits of the host's own ``sum(losses.float() * mask.float())``. One launch on
    CUDA, and one in backward, instead of the host's.

    Args:
        backend: of the reduction.
        microbatch: with losses that carry the gradient.
        weights: of its samples.
        host_loss: scalar, ``Σ mask·loss`` as the host summed it.
    """
    ids = microbatch.ids() if weights.ids is None else microbatch.spread(weights.ids)
    inputs = Inputs(
        *(microbatch.losses, microbatch.mask, ids),
        multipliers=weights.multipliers,
        host_loss=_scalar(host_loss, torch.float32),
    )
    return backend.domain_loss(inputs).loss


def _scalars(host: Host | None) -> Host | tuple[None, None]:
    """As the kernels take them."""
    if host is None:
        return None, None
    return _scalar(host[0], torch.float32), _scalar(host[1], torch.int32)


def _scalar(number: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return number.detach().to(dtype).reshape(())


def count_weighted(
    backend: Backend, ledger: Ledger, microbatch: Microbatch, weights: Weights
) -> None:
    """Add to the ledger's second layer, where every microbatch has its own multipliers."""
    mask = microbatch.mask.float() * microbatch.per_token(weights.of_samples(microbatch.rows))
    backend.domain_reduce(microbatch.inputs()._replace(mask=mask, accumulator=ledger.layers[1]))


def _count_apart(ledger: Ledger, microbatch: Microbatch) -> None:
    """Count the samples that share a row, or have several domains.

    All context parallel ranks hold the same ones, so one of them counts.
    """
    rows = microbatch.rows
    if microbatch.groups.cp_rank != 0:
        return
    if rows.present is not None:
        count_samples(ledger.layers[0], rows.present, torch.ones_like(rows.present))
    elif microbatch.flattened:
        count_samples(ledger.layers[0], rows.domains, rows.tokens)
