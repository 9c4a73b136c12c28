"""The CUDA kernels on tensors of a CUDA device: one launch per operation.

What a launch needs besides addresses depends on the layout of its tensors alone. It is checked and
worked out once for each layout, and kept: a microbatch looks like the one before it, and waits for
the Python in between.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import torch

from domain_pretrain.kernels.domain_reduce import contract, driver
from domain_pretrain.kernels.domain_reduce.contract import Inputs, Scalars
from domain_pretrain.kernels.domain_reduce.kernel_launch import (
    ADDED_TO,
    READ,
    TENSORS,
    Kernel,
    lay_out,
)

OTHERS: dict[Kernel, tuple[str, ...]] = {"reduce": (), "gradient": ("grad", "grad_losses")}
"""What a kernel takes besides its inputs; those that are not here return scalars."""

INTEGERS = ("ids", "host_num_tokens", "accumulator", "totals")
MOST_PLANS = 1024  # layouts that a thread remembers, where sequences have many lengths

_type = attrgetter("shape", "dtype")
_index = torch.Tensor.get_device
_is_contiguous = torch.Tensor.is_contiguous
_address = torch.Tensor.data_ptr


def reduce(inputs: Inputs) -> None:
    """``Kernels.reduce`` in one launch."""
    _launch("reduce", inputs, ())


def loss(inputs: Inputs) -> Scalars:
    """``Kernels.loss`` in one launch, the sums included where an accumulator is given."""
    scalars = empty_scalars(inputs.losses)
    kernel: Kernel = "loss" if inputs.accumulator is None else "reduce_and_loss"
    _launch(kernel, inputs, scalars)
    return scalars


def gradient(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
) -> torch.Tensor:
    """``Kernels.gradient`` in one launch."""
    out = torch.empty(mask.shape, dtype=torch.float32, device=mask.device)
    # Of the losses only the layout is read, which is that of the gradient.
    rest = (None, None, multipliers, None, None, None, None)
    _launch("gradient", Inputs(out, mask, ids, *rest), (grad, out))
    return out


def empty_scalars(like: torch.Tensor) -> Scalars:
    """Where the fields of a ``DomainLoss`` are written; three tensors, since none may be a view."""
    device = like.device
    return (
        torch.empty((), dtype=torch.float32, device=device),
        torch.empty(2, dtype=torch.float32, device=device),
        torch.empty((), dtype=torch.int32, device=device),
    )


class Plan(NamedTuple):
    """A launch for one layout of the tensors that it reads, and for those that it adds to.

    Attributes:
        fill: writes the addresses of the first, and of what comes out, into the arguments.
        workspace: gives the kernel's, if it has one.
        enqueue: launches with what the arguments hold then.
        added_to: the second, which live on, so that nothing else gets their identity.
    """

    fill: Callable[..., None]
    workspace: Callable[[], torch.Tensor] | None
    enqueue: Callable[[], None]
    added_to: tuple[torch.Tensor | None, ...]


def _launch(kernel: Kernel, inputs: Inputs, others: tuple[torch.Tensor, ...]) -> None:
    """Launch on the device of the inputs.

    Args:
        kernel: the entry point in ``domain_reduce.cu``.
        inputs: those that the kernel cannot read as they are get copied.
        others: what the kernel takes besides, contiguous, in the order of ``OTHERS``.
    """
    *read, accumulator, totals = inputs
    given = [tensor for tensor in read if tensor is not None]
    device = driver.device(_index(given[0]))
    addresses = list(map(_address, given))
    key = (
        kernel,
        id(accumulator),
        id(totals),
        *[tensor is None for tensor in read],
        *[address % 16 for address in addresses[:4]],  # of what is read in packs
        *map(_type, given),
        *map(_index, given),
        *map(_is_contiguous, given),
    )
    plan = device.plans.get(key)
    if plan is None:
        contract.check(inputs)
        plain = Inputs(*map(_plain, Inputs._fields, inputs))  # type: ignore[arg-type]
        if any(a is not b for a, b in zip(plain, inputs, strict=True)):
            _launch(kernel, plain, others)
            return
        if len(device.plans) >= MOST_PLANS:
            device.plans.clear()
        plan = device.plans[key] = _plan(kernel, inputs, device)
    if plan.workspace is not None:
        others = (*others, plan.workspace())
    plan.fill(*addresses, *map(_address, others))
    plan.enqueue()


def _plan(kernel: Kernel, inputs: Inputs, device: driver.Device) -> Plan:
    launch = lay_out(kernel, inputs, processors=device.processors)
    others = OTHERS.get(kernel, ("loss", "report", "num_tokens", "workspace"))
    given = {name for name in READ if getattr(inputs, name) is not None}.union(others)
    slots = ["Q" if name in given else "8x" for name in TENSORS[: -len(ADDED_TO)]]
    fill = partial(struct.Struct("=" + "".join(slots)).pack_into, launch.arguments, 0)
    workspace = device.workspace if "workspace" in others else None
    added_to = (inputs.accumulator, inputs.totals)
    return Plan(fill, workspace, device.launcher(launch), added_to)


def _plain(name: str, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """As the kernels read it; almost always it is."""
    if tensor is None:
        return None
    return (tensor if name in INTEGERS else tensor.float()).contiguous()
