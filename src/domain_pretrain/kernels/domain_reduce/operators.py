"""The CUDA kernels as torch operators: what the ``cuda`` backend runs.

An operator runs ``cuda.py`` on CUDA, the reference on any other device, so that
``torch.library.opcheck`` covers it anywhere, and a fake kernel under ``torch.compile``. It takes
tensors, not records: the fields of :class:`.Tokens` and :class:`.HostResult`, in their order.

``torch.library.custom_op`` would cost 52 µs per call and refuses a gradient for an operator that
changes its arguments; defined like this a call costs 9 µs, and ``autograd.py`` attaches the
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from domain_pretrain.kernels.domain_reduce import cuda, reference
from domain_pretrain.kernels.domain_reduce.contract import HostResult, Kernels, Tokens

TOKENS = "Tensor losses, Tensor mask, Tensor ids, Tensor? inverse_row_tokens, Tensor? row_tokens"
WIDTH = len(Tokens._fields)
NO_HOST = (None,) * len(HostResult._fields)

_library = torch.library.Library("domain_pretrain", "DEF")


def _define(
    schema: str, run_on: Callable[[Kernels], Callable[..., Any]], fake: Callable[..., Any]
) -> Any:
    """The operator of a schema; ``run_on(kernels)`` calls the kernels with its arguments."""
    name = schema[: schema.index("(")]
    _library.define(schema)
    _library.impl(name, run_on(reference), "CompositeExplicitAutograd")
    _library.impl(name, run_on(cuda), "CUDA")
    torch.library.register_fake(f"domain_pretrain::{name}", fake, lib=_library)
    return getattr(torch.ops.domain_pretrain, name).default


def _reduce_on(kernels: Kernels) -> Callable[..., None]:
    def run(accumulator: torch.Tensor, *fields: Any) -> None:
        totals, *result = fields[WIDTH:]
        host = None if totals is None else HostResult(totals, *result)
        kernels.domain_reduce(accumulator, Tokens(*fields[:WIDTH]), host)

    return run


def _loss_on(kernels: Kernels) -> Callable[..., tuple[torch.Tensor, ...]]:
    def run(accumulator: torch.Tensor | None, *fields: Any) -> tuple[torch.Tensor, ...]:
        return kernels.domain_loss(accumulator, Tokens(*fields[:WIDTH]), *fields[WIDTH:])

    return run


def _nothing(*arguments: torch.Tensor | None) -> None:
    return None


def _scalars(
    accumulator: torch.Tensor | None, losses: torch.Tensor, *others: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    return cuda.empty_scalars(losses)


def _gradient(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
) -> torch.Tensor:
    return torch.empty(mask.shape, dtype=torch.float32, device=mask.device)


reduce_operator = _define(
    f"domain_reduce(Tensor(a!) accumulator, {TOKENS}, "
    "Tensor(b!)? totals, Tensor? host_loss, Tensor? host_num_tokens) -> ()",
    _reduce_on,
    _nothing,
)
loss_operator = _define(
    f"domain_loss(Tensor(a!)? accumulator, {TOKENS}, "
    "Tensor? multipliers, Tensor? host_loss, Tensor(b!)? totals) -> (Tensor, Tensor, Tensor)",
    _loss_on,
    _scalars,
)
loss_gradient = _define(
    "loss_gradient(Tensor grad, Tensor mask, Tensor ids, Tensor? multipliers) -> Tensor",
    lambda kernels: kernels.loss_gradient,
    _gradient,
)


def domain_reduce(
    accumulator: torch.Tensor, tokens: Tokens, host: HostResult | None = None
) -> None:
    """``Kernels.domain_reduce`` through its operator."""
    reduce_operator(accumulator, *tokens, *(NO_HOST if host is None else host))


def domain_loss(
    accumulator: torch.Tensor | None,
    tokens: Tokens,
    multipliers: torch.Tensor | None,
    host_loss: torch.Tensor | None,
    totals: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``Kernels.domain_loss`` through its operator."""
    return loss_operator(accumulator, *tokens, multipliers, host_loss, totals)
