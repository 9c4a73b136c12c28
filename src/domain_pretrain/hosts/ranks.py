"""Where this process stands among Megatron's ranks, and on what device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from packaging.version import Version

from domain_pretrain.backends import select
from domain_pretrain.errors import ConfigError, UnsupportedError
from domain_pretrain.flow.groups import Groups
from domain_pretrain.kernels import domain_reduce
from domain_pretrain.kernels.exactness.device_check import adds_int64, require_device
from domain_pretrain.process import notice, rank, world_size

T = TypeVar("T")


def owns_writers() -> bool:
    """Whether Megatron's TensorBoard and W&B writers live on this rank: the last one."""
    return rank() == world_size() - 1


def device_of(backend: str, *, reweighting: bool) -> torch.device:
    """Where the losses of this process live.

    Args:
        backend: ``--domain-backend``.
        reweighting: whether the domains are also reweighted.

    Raises:
        UnsupportedError: the device cannot do what the run needs of it.
    """
    name = select(backend)
    device = torch.device("cpu")
    if name != "cpu":
        device = torch.device(name, getattr(torch, name).current_device())
    require_device(device, reweighting=reweighting)
    return device


def kernels_of(name: domain_reduce.Name, device: torch.device) -> domain_reduce.Backend:
    """The reduction that ``channel_loss.kernels`` asks for.

    Raises:
        ConfigError: it cannot run here.
    """
    try:
        return domain_reduce.select(name, device)
    except UnsupportedError as error:
        raise ConfigError(f"channel_loss.kernels: {name} cannot run: {error}; use auto") from error


def groups_of(micro_batch_size: int, device: torch.device) -> Groups:
    """Where this rank stands, as megatron.core's ``parallel_state`` has it; called by all ranks.

    Args:
        micro_batch_size: samples in a training microbatch.
        device: where the sums are.
    """
    from megatron.core import __version__ as version
    from megatron.core import parallel_state as mpu

    cp_size = mpu.get_context_parallel_world_size()
    dp_cp = mpu.get_data_parallel_group(with_context_parallel=True)
    tensor = mpu.get_tensor_model_parallel_group()
    model_parallel = mpu.get_model_parallel_group()
    last_stage = mpu.is_pipeline_last_stage(ignore_virtual=True)
    is_counting = last_stage and mpu.get_tensor_model_parallel_rank() == 0
    # Once, at the start: which member counts depends on the host's rank order.
    flags = [is_counting]
    if dist.get_world_size(model_parallel) > 1:
        flags = [False] * dist.get_world_size(model_parallel)
        dist.all_gather_object(flags, is_counting, group=model_parallel)
    exact = adds_int64(device, _unless_alone(dp_cp))
    if not exact:
        notice(f"{device.type} does not add int64 between devices: sums travel as int32 limbs")
    return Groups(
        last_stage=last_stage,
        is_counting=is_counting,
        dp_cp=_unless_alone(dp_cp),
        adds_int64=exact,
        tensor_parallel=_unless_alone(tensor),
        tensor_source=mpu.get_tensor_model_parallel_src_rank(),
        model_parallel=_unless_alone(model_parallel),
        counting_rank=dist.get_process_group_ranks(model_parallel)[flags.index(True)],
        dp_cp_size=dist.get_world_size(dp_cp),
        dp_rank=mpu.get_data_parallel_rank(),
        cp_rank=mpu.get_context_parallel_rank(),
        cp_size=cp_size,
        micro_batch_size=micro_batch_size,
        # Core 0.12 reduces loss and tokens over CP inside loss_func; later versions do not.
        host_repeats=cp_size if Version(version) < Version("0.13.0.dev0") else 1,
    )


def from_first_rank(make: Callable[[], T]) -> T:
    """What rank 0 makes, on every rank; called by all of them.

    Args:
        make: called on rank 0 alone; must not raise, since the others wait.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return make()
    box = [make() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    return cast(T, box[0])


def largest_of_model(number: float, device: torch.device) -> float:
    """Over the pipeline stages and tensor ranks; all of them call this together.

    One float32 over the model-parallel group, where that is more than one rank.

    Args:
        number: of this rank, a float32 by origin.
        device: that the group reduces on.
    """
    from megatron.core import parallel_state as mpu

    group = _unless_alone(mpu.get_model_parallel_group())
    if group is None:
        return number
    box = torch.tensor(number, dtype=torch.float32, device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX, group=group)
    return float(box)


def _unless_alone(group: Any) -> Any:
    return group if dist.get_world_size(group) > 1 else None
