"""What is read of the host's training loop, on stand-ins; tests/e2e/test_hosts.py has the hosts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from domain_pretrain.hosts.upstream import host_numbers, optimizer_of


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
