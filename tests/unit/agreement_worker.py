"""What three gloo processes do in test_agreement.py: one of them has another exponential."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.agreement import known_everywhere
from domain_pretrain.flow.domain_step import DomainStep
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.moment import Moment
from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Options
from domain_pretrain.rules.state import State
from domain_pretrain.strategies import loss_shape
from domain_pretrain.watch import Reading, Watch
from domain_pretrain.watch.alarm import ALARMS
from domain_pretrain.watch.section import Watching

ODD = 1
NAMES = ("finance", "general", "rare")
LAGGED = {"strategy": "linupper", "warmup_steps": 0}
WITHIN = {**LAGGED, "scope": "microbatch"}


def run(rank: int, folder: str) -> None:
    """Entry of a process."""
    store = Path(folder, "store").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=3)
    agree(LAGGED)
    agree(WITHIN)
    differ(LAGGED, rank, last_bit_of_a_library(rank))
    differ(WITHIN, rank, last_bit_of_a_device(rank))
    differ(LAGGED, rank, mock.MagicMock(), temperature=1.5 if rank == ODD else 1.0)
    find(rank, differently=False)
    with pytest.raises(IntegrityError, match=rf"rank {ODD} differs"):
        find(rank, differently=True)
    numbers = ["grad_norm"] if rank == ODD else ["learning_rate", "grad_norm"]
    world = Groups(model_parallel=dist.group.WORLD)
    assert known_everywhere(numbers, world) == {"grad_norm"}
    assert known_everywhere(numbers, Groups()) == set(numbers)
    dist.barrier()
    dist.destroy_process_group()


def find(rank: int, *, differently: bool) -> None:
    """Two logged steps; in the first, an alarm finds something, on one rank perhaps another."""

    def alarm(seen: Reading, state: State, options: Options) -> Any:
        domain = "rare" if differently and rank == ODD else "general"
        found = [Finding("loud", domain, seen.iteration, "warning", "loud")]
        return (found if seen.iteration == 1 else []), state

    step = DomainStep.create(NAMES, tokens_per_step=48)
    with mock.patch.dict(ALARMS._rules, {"loud": (alarm, Options)}):
        step.watch = Watch(Watching(alarms={"loud": {}}), NAMES)
    for number in (1, 2):
        step.open()
        step.loss(torch.ones(4, 4), torch.ones(4, 4), torch.tensor([0, 1, 2, 1]))
        step.close(Moment(number, 12 * number, log=True, scalars=False, microbatches=1))


def train(section: dict[str, Any], steps: int) -> None:
    step = DomainStep.create(NAMES, section, tokens_per_step=48)
    losses = torch.tensor([1.0, 3.0, 5.0, 3.0])[:, None].expand(-1, 4)
    for _ in range(steps):
        step.open()
        step.loss(losses, torch.ones(4, 4), torch.tensor([0, 1, 2, 1]))
        step.end_step()
        step.stats()  # the check of a logged step


def agree(section: dict[str, Any]) -> None:
    train(section, 3)


def differ(section: dict[str, Any], rank: int, fault: Any, **changed: Any) -> None:
    with (
        fault,
        pytest.raises(IntegrityError, match=rf"\(multipliers, mix, config\): rank {ODD} differs"),
    ):
        train({**section, **changed}, 3)


def last_bit_of_a_library(rank: int) -> Any:
    """The exponential of a processor whose library ends in other bits, as fp32 sees them."""
    exp: Callable[..., Any] = np.exp

    def other(values: Any) -> Any:
        found = exp(values)
        found[0] = np.nextafter(np.float32(found[0]), np.float32(np.inf))
        return found

    stand_in = mock.MagicMock(wraps=np)
    stand_in.exp = other if rank == ODD else exp
    return mock.patch.object(loss_shape, "np", stand_in)


def last_bit_of_a_device(rank: int) -> Any:
    """A softmax whose result differs by one bit in fp32."""
    softmax = torch.softmax

    def other(values: Any, dim: int) -> Any:
        return softmax(values, dim=dim) * torch.tensor([1 + 2**-20, 1, 1]).double()

    return mock.patch.object(torch, "softmax", other if rank == ODD else softmax)
