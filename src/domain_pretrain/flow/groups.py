"""Where this rank stands in the layout, and the one all-reduce that its sums travel in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.kernels.exactness.device_check import adds_int64
from domain_pretrain.kernels.exactness.transport import all_reduce_limbs


@dataclass(frozen=True)
class Groups:
    """Where this rank stands in the layout.

    Attributes:
        last_stage: this rank computes losses.
        is_counting: this rank adds to the sums: last pipeline stage, TP rank 0.
        dp_cp: data × context parallel group of this rank; None for a group of one.
        adds_int64: whether dp_cp adds int64 exactly, alike on all of its ranks; else sums travel
            as int32 limbs, with the same result.
        tensor_parallel: TP group of this rank; None for a group of one.
        tensor_source: global rank of its TP rank 0, the one that reads data.
        model_parallel: TP × PP group of this rank; None for a group of one.
        counting_rank: global rank in ``model_parallel`` that counts.
        dp_cp_size, dp_rank, cp_rank, cp_size: sizes and position.
        micro_batch_size: samples in a training microbatch.
        host_repeats: how many CP ranks report the same host sums (cp_size on hosts that reduce
            over CP inside the loss function, else 1).
    """

    last_stage: bool = True
    is_counting: bool = True
    dp_cp: Any = None
    adds_int64: bool = True
    tensor_parallel: Any = None
    tensor_source: int = 0
    model_parallel: Any = None
    counting_rank: int = 0
    dp_cp_size: int = 1
    dp_rank: int = 0
    cp_rank: int = 0
    cp_size: int = 1
    micro_batch_size: int = 1
    host_repeats: int = 1

    @classmethod
    def data_parallel(cls, device: torch.device) -> Groups:
        """Every process of ``torch.distributed`` is a data parallel rank; without it, one alone.

        Called by all of them; ``device`` is where their sums are.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        world = dist.group.WORLD
        return cls(
            dp_cp=world,
            adds_int64=adds_int64(device, world),
            dp_cp_size=dist.get_world_size(),
            dp_rank=dist.get_rank(),
        )

    def add(self, sums: torch.Tensor) -> None:
        """Add int64 ``sums`` over dp_cp, in place: one all-reduce, on every rank of the group."""
        if self.dp_cp is None:
            return
        all_reduce = dist.all_reduce if self.adds_int64 else all_reduce_limbs
        all_reduce(sums, group=self.dp_cp)
