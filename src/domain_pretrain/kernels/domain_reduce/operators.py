"""The CUDA kernels as torch operators, which ``torch.compile`` can see: the ``cuda`` backend.

Where nothing compiles, ``cuda.py`` is called past the dispatcher, which would take longer than the
launch. Tensors that are not on a GPU go to the reference, so that ``torch.library.opcheck`` and the
compiler can be tried anywhere.

``torch.library.custom_op`` refuses a gradient for an operator that changes its arguments;
``autograd.py`` attaches the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from domain_pretrain.kernels.domain_reduce import cuda, reference
from domain_pretrain.kernels.domain_reduce.contract import Inputs, Kernels, Scalars

ALIASES = {"accumulator": "(a!)", "totals": "(b!)"}
REQUIRED = ("losses", "mask", "ids")
INPUTS = ", ".join(
    f"Tensor{ALIASES.get(name, '')}{'' if name in REQUIRED else '?'} {name}"
    for name in Inputs._fields
)
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


reduce_operator = _define(
    f"domain_reduce({INPUTS}) -> ()",
    lambda kernels: lambda *inputs: kernels.reduce(Inputs(*inputs)),
    lambda *inputs: None,
)
loss_operator = _define(
    f"domain_loss({INPUTS}) -> (Tensor, Tensor, Tensor)",
    lambda kernels: lambda *inputs: kernels.loss(Inputs(*inputs)),
    lambda losses, *others: cuda.empty_scalars(losses),
)
gradient_operator = _define(
    "loss_gradient(Tensor grad, Tensor mask, Tensor ids, Tensor? multipliers) -> Tensor",
    lambda kernels: kernels.gradient,
    lambda grad, mask, *others: torch.empty(mask.shape, dtype=torch.float32, device=mask.device),
)


def _kernels(tensor: torch.Tensor) -> Kernels:
    return cuda if tensor.is_cuda else reference


def reduce(inputs: Inputs) -> None:
    """``Kernels.reduce``."""
    if torch.compiler.is_compiling():
        reduce_operator(*inputs)
    else:
        _kernels(inputs.losses).reduce(inputs)


def loss(inputs: Inputs) -> Scalars:
    """``Kernels.loss``."""
    if torch.compiler.is_compiling():
        return loss_operator(*inputs)
    return _kernels(inputs.losses).loss(inputs)


def gradient(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
) -> torch.Tensor:
    """``Kernels.gradient``."""
    if torch.compiler.is_compiling():
        return gradient_operator(grad, mask, ids, multipliers)
    return _kernels(mask).gradient(grad, mask, ids, multipliers)
