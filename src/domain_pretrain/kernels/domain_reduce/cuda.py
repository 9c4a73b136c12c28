"""The CUDA kernels on tensors of a CUDA device: one launch per operation.

What a launch needs besides addresses depends on the layout of its tensors alone. It is checked and
worked out once for each layout, and kept: a microbatch looks like the one before it, and waits for
the Python in between.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch.compiler import is_dynamo_compiling

from domain_pretrain.kernels.domain_reduce import contract, driver
from domain_pretrain.kernels.domain_reduce.contract import Inputs, Scalars
from domain_pretrain.kernels.domain_reduce.kernel_launch import FORMATS, PACK, Kernel, lay_out

R = TypeVar("R")

INTEGERS = ("ids", "host_num_tokens", "accumulator", "totals")
MOST_PLANS = 1024  # layouts that a thread remembers, where sequences have many lengths

_index = torch.Tensor.get_device
_empty_like = torch.empty_like


def _outside_of_graphs(function: Callable[..., R]) -> Callable[..., R]:
    """For ``torch.compile``, which would keep the addresses and the stream of one call.

    Where nothing compiles, ``torch.compiler.disable`` alone would take longer than the launch.
    """
    outside = torch.compiler.disable(function)

    def call(*args: Any) -> R:
        return outside(*args) if is_dynamo_compiling() else function(*args)

    return call


@_outside_of_graphs
def reduce(inputs: Inputs) -> None:
    """``Kernels.reduce`` in one launch."""
    plan, _read, addresses = _planned("reduce", inputs)
    plan.fill(*addresses)
    plan.enqueue()


@_outside_of_graphs
def loss(inputs: Inputs) -> tuple[Scalars, Kept]:
    """``Kernels.loss`` in one launch, the sums included where an accumulator is given."""
    plan, read, addresses = _planned("loss", inputs)
    loss, report, num_tokens = map(_empty_like, plan.scalars)
    workspace = plan.workspace()
    written = (loss.data_ptr(), report.data_ptr(), num_tokens.data_ptr(), workspace.data_ptr())
    plan.fill(*addresses, *written)
    plan.enqueue()
    return (loss, report, num_tokens), (plan, read.mask, read.ids, read.multipliers)


@_outside_of_graphs
def gradient(grad: torch.Tensor, kept: Kept) -> torch.Tensor:
    """``Kernels.gradient`` in one launch, planned once for each plan of the loss: its inputs have
    been checked.
    """
    forward, mask, ids, multipliers = kept
    device = driver.device(_index(mask))
    plan = device.thread.plans.get(forward)
    if plan is None:
        # Of the losses it needs only the layout, which is that of the mask.
        inputs = Inputs(mask, mask, ids, None, multipliers)
        plan = _keep(device, forward, "gradient", inputs, aligned=forward.aligned)
    out = _empty_like(mask)  # aligned for packs, as what torch allocates is
    weights = 0 if multipliers is None else multipliers.data_ptr()
    plan.fill(mask.data_ptr(), ids.data_ptr(), weights, grad.data_ptr(), out.data_ptr())
    plan.enqueue()
    return out


@dataclass(eq=False)  # it is a key, too
class Plan:
    """A launch for one layout of the tensors that it reads, and for those that it adds to.

    Attributes:
        fill: writes addresses into the arguments; none may be freed before they are launched with.
        enqueue: launches on the current stream, with what the arguments hold then.
        workspace: gives one for the next launch.
        scalars: what the fields of a ``DomainLoss`` are like: three tensors, as none may be a view.
        aligned: see ``lay_out``.
        inverse, row_tokens: bytes from the ids to these, which lie behind; else 0.
        added_to: live on, so that nothing else gets their identity.
    """

    fill: Callable[..., None]
    enqueue: Callable[[], None]
    workspace: Callable[[], torch.Tensor]
    scalars: Scalars
    aligned: bool
    inverse: int
    row_tokens: int
    added_to: tuple[torch.Tensor | None, ...]


Kept = tuple[Plan, torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Of the loss: its plan, the mask, the ids and the multipliers, as the kernel read them."""


def _planned(kernel: Kernel, inputs: Inputs) -> tuple[Plan, Inputs, list[int]]:
    """The plan; ``inputs`` as the kernel reads them, themselves or copies; and their addresses,
    that of the row tokens behind them. All are on the device that is launched on.
    """
    device = driver.device(_index(inputs.losses))
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in inputs]
    ids = addresses[2]
    aligned = (addresses[0] | addresses[1] | ids | addresses[3]) % PACK == 0
    losses, mask, known, *others, accumulator, totals = inputs
    key = (
        kernel,
        aligned,
        id(accumulator),
        id(totals),
        *(losses.shape, losses.dtype, losses.is_contiguous()),  # the device's plans are its own
        *(mask.shape, mask.dtype, mask.device, mask.is_contiguous()),
        *(known.shape, known.dtype, known.device, known.is_contiguous()),
        *[t if t is None else (t.shape, t.dtype, t.device, t.is_contiguous()) for t in others],
    )
    plan = device.thread.plans.get(key)
    if plan is None:
        contract.check(inputs, sums_alone=kernel == "reduce")
        plain = Inputs._make(map(_plain, Inputs._fields, inputs))
        if any(a is not b for a, b in zip(plain, inputs, strict=True)):
            return _planned(kernel, plain)
        plan = _keep(device, key, kernel, inputs, aligned=aligned)
    if plan.inverse:
        addresses[3] = ids + plan.inverse
    addresses.append(ids + plan.row_tokens if plan.row_tokens else 0)
    return plan, inputs, addresses


def _keep(
    device: driver.Device, key: object, kernel: Kernel, inputs: Inputs, *, aligned: bool
) -> Plan:
    """A new plan, kept by this thread."""
    launch = lay_out(kernel, inputs, aligned=aligned, processors=device.processors)
    known, step = inputs.known_of_rows(), 4 * inputs.losses.shape[0]
    scalar = torch.empty((), dtype=torch.float32, device=inputs.losses.device)
    if len(device.thread.plans) >= MOST_PLANS:
        device.thread.plans.clear()
    plan = device.thread.plans[key] = Plan(
        partial(struct.Struct("=" + FORMATS[kernel]).pack_into, launch.arguments, 0),
        device.launcher(launch),
        device.workspace,
        (scalar, scalar.new_empty(2), scalar.new_empty((), dtype=torch.int32)),
        aligned,
        inverse=step if known > 1 else 0,
        row_tokens=2 * step if known > 2 else 0,
        added_to=(inputs.accumulator, inputs.totals),
    )
    return plan


def _plain(name: str, tensor: torch.Tensor | None) -> torch.Tensor | None:
    """As the kernels read it; almost always it is."""
    if tensor is None:
        return None
    return (tensor if name in INTEGERS else tensor.float()).contiguous()
