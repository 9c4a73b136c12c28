"""What is read of the host's training loop, on stand-ins; tests/e2e/test_hosts.py has the hosts."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from domain_pretrain.hosts.upstream import course_of, host_numbers, optimizer_of


def optimizer(*groups: dict[str, Any]) -> Any:
    return SimpleNamespace(param_groups=list(groups))


@pytest.mark.parametrize(
    ("groups", "rate"),
    [
        ([{"lr": 0.5}], 0.5),
        ([{"lr": 0.1, "is_decoupled_lr": True}, {"lr": 0.5, "is_decoupled_lr": False}], 0.5),
        ([{"lr": 0.1, "default_config": False}, {"lr": 0.5, "default_config": True}], 0.5),
        ([{"lr": 0.1, "default_config": False}], None),
        ([], None),
    ],
)
def test_the_learning_rate_is_that_of_the_groups_that_follow_it(
    groups: list[dict[str, Any]], rate: float | None
) -> None:
    expected = {} if rate is None else {"learning_rate": rate}
    assert host_numbers(optimizer(*groups), None) == expected
    assert host_numbers(optimizer(*groups), 2) == {**expected, "grad_norm": 2.0}


def test_the_optimizer_is_found_wherever_it_stands() -> None:
    found = optimizer()
    assert optimizer_of(["forward_step", [object()], found, None]) is found
    assert optimizer_of([None, "forward_step"]) is None
    assert host_numbers(None, None) == {}


@pytest.mark.parametrize(
    ("style", "decay", "last"),
    [
        ("linear", 200, 0.1),
        ("cosine", 200, 0.1),
        ("constant", 200, 1.0),
        ("linear", 100, 0.1),  # done before the run is
        ("linear", 400, 0.1 + 0.9 * (1 - 180 / 380)),  # and not yet
        ("cosine", 400, 0.1 + 0.9 * (1 + math.cos(math.pi * 180 / 380)) / 2),
        ("inverse-square-root", 200, math.sqrt(20 / 200)),
    ],
)
def test_the_rate_that_a_run_ends_at(style: str, decay: int, last: float) -> None:
    """20 iterations of 10 samples, by Megatron's own scheduler, which stays where it is."""
    core = pytest.importorskip("megatron.core.optimizer_param_scheduler")
    group = {"lr": 0.0, "max_lr": 2e-4, "min_lr": 2e-5}
    common = {"start_wd": 0.1, "end_wd": 0.1, "wd_incr_steps": 200, "wd_incr_style": "constant"}
    scheduler = core.OptimizerParamScheduler(
        optimizer(group), 0.0, 2e-4, 2e-5, 20, decay, style, **common
    )
    scheduler.step(increment=50)
    args = SimpleNamespace(train_samples=None, train_iters=20, global_batch_size=10, lr=2e-4)
    course = course_of(args, 50, optimizer(group), scheduler)
    assert course.progress == 0.25
    assert course.lr == group["lr"] / 2e-4
    assert course.last_lr == pytest.approx(last)
    assert scheduler.num_steps == 50
    scheduler.step(increment=150)
    assert group["lr"] == pytest.approx(last * 2e-4)
    assert course_of(args, 50, None, scheduler).lr == 1.0
