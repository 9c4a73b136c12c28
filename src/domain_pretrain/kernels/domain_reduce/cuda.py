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
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch.compiler import is_compiling

from domain_pretrain.kernels.domain_reduce import contract, driver
from domain_pretrain.kernels.domain_reduce.contract import Inputs, Scalars
from domain_pretrain.kernels.domain_reduce.kernel_launch import (
    ADDED_TO,
    READ,
    TENSORS,
    Kernel,
    lay_out,
)

P = ParamSpec("P")
R = TypeVar("R")

SCALARS = ("loss", "report", "num_tokens", "workspace")
OTHERS: dict[Kernel, tuple[str, ...]] = {"reduce": (), "gradient": ("grad", "grad_losses")}
"""What a kernel takes besides its inputs, in order; those that are not here take ``SCALARS``."""

INTEGERS = ("ids", "host_num_tokens", "accumulator", "totals")
NOTHING = (None,) * len(ADDED_TO)
MOST_PLANS = 1024  # layouts that a thread remembers, where sequences have many lengths

_type = attrgetter("shape", "dtype", "device")
_index = torch.Tensor.get_device
_is_contiguous = torch.Tensor.is_contiguous
_address = torch.Tensor.data_ptr
_empty_like = torch.empty_like


def _outside_of_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """For ``torch.compile``, which would keep the addresses and the stream of one call.

    Where nothing compiles, ``torch.compiler.disable`` alone would take longer than the launch.
    """
    outside = torch.compiler.disable(function)

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return outside(*args, **kwargs) if is_compiling() else function(*args, **kwargs)

    return call


@_outside_of_graphs
def reduce(inputs: Inputs) -> None:
    """``Kernels.reduce`` in one launch."""
    plan, _copies, addresses = _planned("reduce", inputs[: len(READ)], inputs[len(READ) :])
    plan.launch(addresses)


@_outside_of_graphs
def loss(inputs: Inputs) -> Scalars:
    """``Kernels.loss`` in one launch, the sums included where an accumulator is given."""
    kernel: Kernel = "loss" if inputs.accumulator is None else "reduce_and_loss"
    plan, _copies, addresses = _planned(kernel, inputs[: len(READ)], inputs[len(READ) :])
    loss, report, num_tokens = map(_empty_like, plan.scalars)
    plan.launch(addresses, loss, report, num_tokens, plan.workspace())
    return loss, report, num_tokens


@_outside_of_graphs
def gradient(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
) -> torch.Tensor:
    """``Kernels.gradient`` in one launch."""
    tensors = (None, mask, ids, None, None, multipliers, None, None)
    plan, read, addresses = _planned("gradient", tensors, NOTHING)
    out = _empty_like(read[1])  # aligned for packs, as what torch allocates is
    plan.launch(addresses, grad, out)
    return out


class Plan(NamedTuple):
    """A launch for one layout of the tensors that it reads, and for those that it adds to.

    Attributes:
        fill: writes the addresses of the first, and of ``OTHERS``, into the arguments.
        enqueue: launches with what the arguments hold then.
        workspace: gives one for the next launch.
        scalars: what the fields of a ``DomainLoss`` are like: three tensors, as none may be a view.
        added_to: the second, which live on, so that nothing else gets their identity.
    """

    fill: Callable[..., None]
    enqueue: Callable[[], None]
    workspace: Callable[[], torch.Tensor]
    scalars: Scalars
    added_to: tuple[torch.Tensor | None, ...]

    def launch(self, addresses: list[int], *others: torch.Tensor) -> None:
        """Launch on the current stream; nothing that has an address here may be freed before."""
        self.fill(*addresses, *map(_address, others))
        self.enqueue()


def _planned(
    kernel: Kernel,
    read: tuple[Any, ...],
    added_to: tuple[torch.Tensor | None, ...],
) -> tuple[Plan, tuple[Any, ...], list[int]]:
    """The plan; ``read`` as the kernel reads it: itself, or copies; and the addresses of those.

    Args:
        kernel: the entry point in ``domain_reduce.cu``.
        read: in the order of ``READ``; on the device that is launched on.
        added_to: in the order of ``ADDED_TO``.
    """
    given = [tensor for tensor in read if tensor is not None]
    device = driver.device(_index(given[0]))
    addresses = list(map(_address, given))
    key = (
        kernel,
        *map(id, added_to),
        *[tensor is None for tensor in read],
        *[address % 16 for address in addresses[:4]],  # of what is read in packs
        *map(_type, given),
        *map(_is_contiguous, given),
    )
    plan = device.plans.get(key)
    if plan is None:
        # Of the losses a gradient needs only the layout, which is that of the mask.
        inputs = Inputs(given[0], *read[1:], *added_to)
        contract.check(inputs)
        plain = tuple(map(_plain, READ, read))
        if any(a is not b for a, b in zip(plain, read, strict=True)):
            return _planned(kernel, plain, added_to)
        if len(device.plans) >= MOST_PLANS:
            device.plans.clear()
        plan = device.plans[key] = _plan(kernel, inputs, device)
    return plan, read, addresses


def _plan(kernel: Kernel, inputs: Inputs, device: driver.Device) -> Plan:
    launch = lay_out(kernel, inputs, processors=device.processors)
    given = {name for name in READ if getattr(inputs, name) is not None}
    given.update(OTHERS.get(kernel, SCALARS))
    packed = inputs.accumulator is not None and inputs.tokens().packed()
    if packed:
        given |= {"inverse_row_tokens", "row_tokens"}
    if kernel == "gradient":
        given.remove("losses")
    slots = ["Q" if name in given else "8x" for name in TENSORS[: -len(ADDED_TO)]]
    fill: Callable[..., None] = struct.Struct("=" + "".join(slots)).pack_into
    fill = partial(fill, launch.arguments, 0)
    if packed:
        fill = partial(_fill_packed, fill, inputs.ids.nbytes // 3)
    scalar = torch.empty((), dtype=torch.float32, device=inputs.losses.device)
    scalars = (scalar, scalar.new_empty(2), scalar.new_empty((), dtype=torch.int32))
    added_to = (inputs.accumulator, inputs.totals)
    return Plan(fill, device.launcher(launch), device.workspace, scalars, added_to)


def _fill_packed(
    fill: Callable[..., None], step: int, losses: int, mask: int, rows: int, *others: int
) -> None:
    fill(losses, mask, rows, rows + 2 * step, rows + step, *others)


def _plain(name: str, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """As the kernels read it; almost always it is."""
    if tensor is None:
        return None
    return (tensor if name in INTEGERS else tensor.float()).contiguous()
