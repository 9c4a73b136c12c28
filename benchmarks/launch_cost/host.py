"""Megatron's loss function, and what it finds in a run: its arguments and its rerun machine."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.rerun_state_machine import (
    RerunMode,
    RerunState,
    get_rerun_state_machine,
    initialize_rerun_state_machine,
)
from megatron.training.global_vars import set_args
from support.passes import loss_func

from domain_pretrain.hosts.gpt import entry


def start() -> None:
    """One process amid its second step, with the flags that are on by default."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    set_args(Namespace(check_for_nan_in_loss_and_grad=True, check_for_spiky_loss=False))
    initialize_rerun_state_machine(mode=RerunMode.VALIDATE_RESULTS)
    machine = get_rerun_state_machine()
    machine.state = RerunState.INITIAL_RUN
    machine.first_iteration_complete = True  # before, it checks nothing


def checked_loss_func(mask: torch.Tensor, losses: torch.Tensor) -> Any:
    """The whole of it: the operations, then a check for NaN and one for infinity."""
    loss, num_tokens, reports = loss_func(mask, losses)
    return entry._finish(loss, reports["lm loss"], num_tokens, entry.NAN, entry.INFINITE)
