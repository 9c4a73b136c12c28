"""The CUDA kernels on tensors of a CUDA device: one launch per operation."""

from __future__ import annotations

import torch

from domain_pretrain.kernels.domain_reduce import contract, driver, kernel_launch
from domain_pretrain.kernels.domain_reduce.contract import HostResult, Tokens
from domain_pretrain.kernels.domain_reduce.kernel_launch import Kernel, Tensors


def domain_reduce(
    accumulator: torch.Tensor, tokens: Tokens, host: HostResult | None = None
) -> None:
    """``Kernels.domain_reduce`` in one launch."""
    contract.check_reduce(accumulator, tokens, host)
    tensors = Tensors(
        *_readable(tokens),
        host_loss=None if host is None else host.loss,
        host_tokens=None if host is None else host.num_tokens,
        accumulator=accumulator,
        totals=None if host is None else host.totals,
    )
    _launch("reduce", tokens.losses.shape, tensors, accumulator.shape[0] - 1)


def domain_loss(
    accumulator: torch.Tensor | None,
    tokens: Tokens,
    multipliers: torch.Tensor | None,
    host_loss: torch.Tensor | None,
    totals: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``Kernels.domain_loss`` in one launch, the sums included where an accumulator is given."""
    contract.check_loss(accumulator, tokens, multipliers, host_loss, totals)
    loss, report, num_tokens = empty_scalars(tokens.losses)
    tensors = Tensors(
        *_readable(tokens),
        multipliers=None if multipliers is None else multipliers.contiguous(),
        host_loss=host_loss,
        accumulator=accumulator,
        totals=totals,
        loss=loss,
        report=report,
        num_tokens=num_tokens,
    )
    if accumulator is None:
        _launch("loss", tokens.losses.shape, tensors, _domains(multipliers))
    else:
        _launch("reduce_and_loss", tokens.losses.shape, tensors, accumulator.shape[0] - 1)
    return loss, report, num_tokens


def loss_gradient(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
) -> torch.Tensor:
    """``Kernels.loss_gradient`` in one launch."""
    gradient = torch.empty(mask.shape, dtype=torch.float32, device=mask.device)
    tensors = Tensors(
        mask=_plain(mask),
        ids=ids.contiguous(),
        multipliers=None if multipliers is None else multipliers.contiguous(),
        grad=grad,
        grad_losses=gradient,
    )
    _launch("gradient", mask.shape, tensors, _domains(multipliers))
    return gradient


def empty_scalars(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the fields of a ``DomainLoss`` are written; three tensors, since none may be a view."""
    return (
        torch.empty((), dtype=torch.float32, device=like.device),
        torch.empty(2, dtype=torch.float32, device=like.device),
        torch.empty((), dtype=torch.int32, device=like.device),
    )


def _launch(kernel: Kernel, shape: tuple[int, ...], tensors: Tensors, domains: int) -> None:
    """Launch on the device of ``tensors.ids``, which every kernel reads."""
    device = driver.device(tensors.ids.device.index)  # type: ignore[union-attr]
    if tensors.loss is not None:
        tensors = tensors._replace(workspace=device.workspace())
    device.launch(
        kernel_launch.lay_out(
            kernel,
            shape,
            tensors,
            domains=domains,
            processors=device.processors,
        )
    )


def _domains(multipliers: torch.Tensor | None) -> int:
    return 0 if multipliers is None else multipliers.shape[0]


def _readable(tokens: Tokens) -> Tokens:
    """The tokens as the kernels read them; almost always they are."""
    losses, mask, ids, inverse, row_tokens = tokens
    return Tokens(
        _plain(losses),
        _plain(mask),
        ids.contiguous(),
        None if inverse is None else _plain(inverse),
        None if row_tokens is None else _plain(row_tokens),
    )


def _plain(values: torch.Tensor) -> torch.Tensor:
    return values.float().contiguous()
