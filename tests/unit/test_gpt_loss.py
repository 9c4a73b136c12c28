"""The built-in entry's loss function: what it hands to the host's rerun machine."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.passes import Pass, forward, loss_func

from domain_pretrain.flow.forward import FROM_SUMS
from domain_pretrain.kernels.domain_reduce import Backend, Inputs, reference
from domain_pretrain.kernels.domain_reduce.contract import LIMIT

pytest.importorskip("megatron.training.argument_utils", reason="this Megatron needs no entry")
from domain_pretrain.hosts.gpt import entry


class Machine:
    """The host's, which only notes what it is asked to check, and whether that is rejected."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, bool, bool]] = []

    def validate_result(
        self,
        result: torch.Tensor,
        rejection_func: Callable[[torch.Tensor], Any],
        message: str,
        tolerance: float,
        fatal: bool,
    ) -> None:
        assert tolerance == 0
        self.asked.append((message, bool(rejection_func(result)), fatal))

    def is_unexpectedly_large(self, result: torch.Tensor, threshold: float, context: str) -> bool:
        return context == "loss" and result.item() > threshold


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(entry, "get_rerun_state_machine", lambda: found)
    set_flags(monkeypatch, nan=True, spiky=False)
    return found


def set_flags(monkeypatch: pytest.MonkeyPatch, *, nan: bool, spiky: bool) -> None:
    args = Namespace(check_for_nan_in_loss_and_grad=nan, check_for_spiky_loss=spiky)
    monkeypatch.setattr(entry, "get_args", lambda: args)


NAN, INF = (
    "found NaN in local forward loss calculation",
    "found Inf in local forward loss calculation",
)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_rejected_once(machine: Machine, bad: float | None) -> None:
    """As Megatron's script does it; of the kernel's sums one check finds both."""
    losses, mask = torch.ones(2, 4), torch.ones(2, 4)
    if bad is not None:
        losses[1, 2] = bad
    entry.loss_func(mask, losses)
    assert machine.asked == [
        (NAN, bad is not None and math.isnan(bad), True),
        (INF, bad is not None and math.isinf(bad), True),
    ]
    machine.asked.clear()
    sums, _ = reference.loss(Inputs(losses, mask, torch.zeros(2, dtype=torch.int32)))
    getattr(entry.loss_func, FROM_SUMS)(*sums)
    assert machine.asked == [(NAN, bad is not None, True)]


@given(
    st.lists(
        st.floats(width=32) | st.sampled_from([LIMIT, -LIMIT, 2 * LIMIT, 3.4e38]),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([1, 4096]),
    st.floats(0, 2.0**99, width=32),
)
def test_the_kernels_loss_is_never_infinite(
    tokens: list[float], times: int, multiplier: float
) -> None:
    losses = torch.tensor(tokens).repeat(1, times)
    given = Inputs(losses, torch.ones_like(losses), torch.zeros(1, dtype=torch.int32))
    for inputs in (given, given._replace(multipliers=torch.tensor([multiplier]))):
        (loss, report, _), _ = reference.loss(inputs)
        assert not torch.isinf(loss) and not torch.isinf(report).any()
        if not losses.isfinite().all():
            assert torch.isnan(loss)


@pytest.mark.parametrize("by_kernel", [False, True])
def test_the_hosts_flags_decide(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, by_kernel: bool
) -> None:
    plugin = forward(Backend("cuda" if by_kernel else "reference", reference))
    set_flags(monkeypatch, nan=False, spiky=False)
    loss, _, gradient = Pass(plugin, entry.loss_func)()
    assert machine.asked == []
    wanted = Pass(None, loss_func)()
    assert loss.item() == pytest.approx(wanted[0].item()) and torch.equal(gradient, wanted[2])
    set_flags(monkeypatch, nan=False, spiky=True)
    Pass(plugin, entry.loss_func)()
    assert machine.asked == [("Spiky loss", True, False)]
    machine.asked.clear()
    set_flags(monkeypatch, nan=True, spiky=True)
    Pass(plugin, entry.loss_func)()
    names = [message for message, *_ in machine.asked]
    assert names == ([NAN, "Spiky loss"] if by_kernel else [NAN, INF, "Spiky loss"])
