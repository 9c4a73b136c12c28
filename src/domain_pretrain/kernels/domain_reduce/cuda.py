"""The CUDA kernels as torch operators: what the ``cuda`` backend runs.

Each operator has a fake kernel, for ``torch.compile``, and the reference behind it on devices
without CUDA, so that ``torch.library.opcheck`` covers it anywhere. ``torch.library.custom_op``
would cost 52 µs a call, and refuses a gradient for an operator that changes its arguments; defined
like this a call costs 9 µs, and ``autograd.py`` attaches the gradient.
"""

from __future__ import annotations

import torch

from domain_pretrain.kernels.domain_reduce import contract, driver, launch, reference
from domain_pretrain.kernels.domain_reduce.launch import Tensors

_library = torch.library.Library("domain_pretrain", "DEF")


def _define(schema: str) -> None:
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, getattr(reference, name), "CompositeExplicitAutograd")


_define(
    "domain_reduce(Tensor(a!) accumulator, Tensor losses, Tensor mask, Tensor ids, "
    "Tensor inverse_row_tokens, Tensor? row_tokens, Tensor(b!)? totals, "
    "Tensor? host_loss, Tensor? host_tokens) -> ()"
)
_define("count_samples(Tensor(a!) accumulator, Tensor ids, Tensor row_tokens) -> ()")
_define(
    "domain_loss(Tensor(a!)? accumulator, Tensor losses, Tensor mask, Tensor ids, "
    "Tensor? inverse_row_tokens, Tensor? multipliers, Tensor? row_tokens, Tensor? host_loss, "
    "Tensor(b!)? totals) -> (Tensor, Tensor, Tensor)"
)
_define(
    "loss_gradient(Tensor grad, Tensor mask, Tensor ids, Tensor? multipliers, ScalarType dtype) "
    "-> Tensor"
)

domain_reduce = torch.ops.domain_pretrain.domain_reduce.default
count_samples = torch.ops.domain_pretrain.count_samples.default
domain_loss = torch.ops.domain_pretrain.domain_loss.default
loss_gradient = torch.ops.domain_pretrain.loss_gradient.default


def launch_reduce(
    accumulator: torch.Tensor,
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    inverse_row_tokens: torch.Tensor,
    row_tokens: torch.Tensor | None,
    totals: torch.Tensor | None,
    host_loss: torch.Tensor | None,
    host_tokens: torch.Tensor | None,
) -> None:
    """``domain_reduce`` in one launch."""
    contract.check_reduce(accumulator, losses, mask, ids, inverse_row_tokens, row_tokens)
    contract.check_host(totals, host_loss, host_tokens)
    tensors = Tensors(
        losses=_floating(losses),
        mask=mask.float(),
        ids=_integer(ids),
        inverse=inverse_row_tokens.float(),
        row_tokens=_row(row_tokens),
        host_loss=host_loss,
        host_tokens=host_tokens,
        accumulator=accumulator,
        totals=totals,
    )
    device = driver.device(losses.device.index)
    device.launch(
        launch.plan(
            "reduce",
            losses.shape,
            tensors,
            domains=accumulator.shape[0] - 1,
            processors=device.processors,
        )
    )


def launch_count(accumulator: torch.Tensor, ids: torch.Tensor, row_tokens: torch.Tensor) -> None:
    """``count_samples`` in one launch."""
    contract.check_accumulator(accumulator)
    contract.check_samples(ids, row_tokens)
    tensors = Tensors(ids=_integer(ids), row_tokens=_row(row_tokens), accumulator=accumulator)
    device = driver.device(accumulator.device.index)
    device.launch(
        launch.plan(
            "count",
            (ids.shape[0], 1),
            tensors,
            domains=accumulator.shape[0] - 1,
            processors=device.processors,
        )
    )


def launch_loss(
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
    """``domain_loss`` in one launch, the sums included where an accumulator is given."""
    contract.check_loss(
        accumulator, losses, mask, ids, inverse_row_tokens, multipliers, row_tokens, host_loss
    )
    contract.check_totals(totals)
    loss, report, num_tokens = _scalars(losses)
    tensors = Tensors(
        losses=_floating(losses),
        mask=mask.float(),
        ids=_integer(ids),
        inverse=None if inverse_row_tokens is None else inverse_row_tokens.float(),
        row_tokens=_row(row_tokens),
        multipliers=None if multipliers is None else multipliers.contiguous(),
        host_loss=host_loss,
        accumulator=accumulator,
        totals=totals,
        loss=loss,
        report=report,
        num_tokens=num_tokens,
    )
    device = driver.device(losses.device.index)
    device.launch(
        launch.plan(
            "loss" if accumulator is None else "reduce_and_loss",
            losses.shape,
            tensors,
            domains=_domains(multipliers) if accumulator is None else accumulator.shape[0] - 1,
            processors=device.processors,
            workspace=device.workspace(),
        )
    )
    return loss, report, num_tokens


def launch_gradient(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``loss_gradient`` in one launch."""
    gradient = torch.empty(mask.shape, dtype=dtype, device=mask.device)
    tensors = Tensors(
        mask=mask.float(),
        ids=_integer(ids),
        multipliers=None if multipliers is None else multipliers.contiguous(),
        grad=grad,
        grad_losses=gradient,
    )
    device = driver.device(mask.device.index)
    device.launch(
        launch.plan(
            "gradient",
            mask.shape,
            tensors,
            domains=_domains(multipliers),
            processors=device.processors,
        )
    )
    return gradient


def _domains(multipliers: torch.Tensor | None) -> int:
    return 0 if multipliers is None else multipliers.shape[0]


def _scalars(like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the fields of a ``DomainLoss`` are written; three tensors, since none may be a view."""
    return (
        torch.empty((), dtype=torch.float32, device=like.device),
        torch.empty(2, dtype=torch.float32, device=like.device),
        torch.empty((), dtype=torch.int32, device=like.device),
    )


def _floating(losses: torch.Tensor) -> torch.Tensor:
    return losses if losses.dtype in launch.LOSS_TYPES else losses.float()


def _integer(ids: torch.Tensor) -> torch.Tensor:
    return ids if ids.dtype in launch.ID_TYPES else ids.long()


def _row(row_tokens: torch.Tensor | None) -> torch.Tensor | None:
    return None if row_tokens is None else row_tokens.float().contiguous()


_library.impl("domain_reduce", launch_reduce, "CUDA")
_library.impl("count_samples", launch_count, "CUDA")
_library.impl("domain_loss", launch_loss, "CUDA")
_library.impl("loss_gradient", launch_gradient, "CUDA")


@torch.library.register_fake("domain_pretrain::domain_reduce", lib=_library)
def _(*arguments: torch.Tensor | None) -> None:
    return None


@torch.library.register_fake("domain_pretrain::count_samples", lib=_library)
def _(*arguments: torch.Tensor) -> None:
    return None


@torch.library.register_fake("domain_pretrain::domain_loss", lib=_library)
def _(
    accumulator: torch.Tensor | None, losses: torch.Tensor, *arguments: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _scalars(losses)


@torch.library.register_fake("domain_pretrain::loss_gradient", lib=_library)
def _(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    return torch.empty(mask.shape, dtype=dtype, device=mask.device)
