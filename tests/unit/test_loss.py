"""The loss of a microbatch beside the host's or instead of it, and what each launches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from support.passes import (
    SOURCE,
    Pass,
    forward,
    loss_func,
    microbatch,
    our_loss_func,
    run,
    steering,
)
from torch.utils._python_dispatch import TorchDispatchMode

from domain_pretrain.flow.forward import Forward
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.flow.tap import BatchTap, Rows
from domain_pretrain.kernels.domain_reduce import Backend, reference, select
from domain_pretrain.stats import Column

# 48 losses added up in fp32, in an order that is the CPU's: each addition rounds by 2^-24 at most.
ROUNDING = 48 * 2**-24
KERNELS = ("reduce", "loss", "gradient")
BACKENDS = {"reference": select("reference"), "fused": Backend("cuda", reference)}


@pytest.mark.parametrize("kind", [None, "lagged", "domain", "sample"])
@pytest.mark.parametrize("name", BACKENDS)
def test_in_the_hosts_place_is_as_good_as_beside_it(name: str, kind: str | None) -> None:
    beside, instead = forward(BACKENDS[name], kind), forward(BACKENDS[name], kind)
    losses, batch = microbatch()
    wanted = run(beside, loss_func)
    found = run(instead, our_loss_func if name == "fused" else loss_func)
    assert torch.equal(found[2], wanted[2])
    assert torch.equal(instead.ledger.sums, beside.ledger.sums)
    assert torch.allclose(found[0], wanted[0], rtol=ROUNDING, atol=0)
    assert torch.equal(found[1][0], wanted[1][0])
    report, expected = found[1][1]["lm loss"], wanted[1][1]["lm loss"]
    assert torch.allclose(report, expected, rtol=ROUNDING, atol=0)
    assert instead.ledger.totals[1:].tolist() == beside.ledger.totals[1:].tolist()
    assert instead.ledger.totals[0].item() == pytest.approx(
        beside.ledger.totals[0].item(), ROUNDING
    )
    # And both are right: float64, by hand.
    multipliers = torch.ones(3)
    if instead.steering is not None:
        multipliers = run_weights(forward(BACKENDS[name], kind))
    exact = (multipliers[:, None] * batch["loss_mask"] * losses).double().sum()
    assert found[0].item() == pytest.approx(exact.item(), rel=ROUNDING)
    assert torch.allclose(found[2], multipliers[:, None] * batch["loss_mask"], rtol=1e-6)


def run_weights(plugin: Forward) -> torch.Tensor:
    """The multipliers ``[3]`` that the steering gives the microbatch's samples."""
    seen: list[torch.Tensor] = []
    assert plugin.steering is not None
    weights = plugin.steering.weights

    def spy(microbatch: Any) -> Any:
        found = weights(microbatch)
        seen.append(found.of_samples(microbatch.rows))
        return found

    plugin.steering.weights = spy  # type: ignore[method-assign]
    run(plugin, loss_func)
    return seen[0]


@pytest.mark.parametrize("kind", ["domain", "sample"])
@pytest.mark.parametrize(("apart", "equal"), [(2.0**-22, True), (2.0**-10, False)])
def test_losses_that_differ_by_rounding_weigh_the_same(
    kind: str, apart: float, equal: bool
) -> None:
    losses, mask = torch.full((2, 16), 2.0), torch.ones(2, 16)
    losses[1] += apart
    rows = Rows.of(torch.tensor([0, 1]), mask.sum(1))
    given = steering(kind, torch.device("cpu"))
    assert given is not None
    weights = given.weights(Microbatch.build(losses, mask, rows, Groups()))
    assert weights is not None
    first, second = weights.of_samples(rows).tolist()
    assert (first == second == 1) if equal else first < second


def test_step_multipliers_weigh_the_sums_of_the_step() -> None:
    plugin = forward(select("reference"), "lagged")
    run(plugin, loss_func)
    assert plugin.steering is not None and plugin.steering.step_multipliers is not None
    assert not plugin.ledger.sums[1].any(), "not a microbatch at a time"
    plugin.ledger.weigh(plugin.steering.step_multipliers)
    raw, weighted = plugin.ledger.sums.double()
    for column in (Column.LOSS, Column.TOKENS):
        expected = raw[:-1, column] * plugin.steering.step_multipliers.double()
        assert torch.allclose(weighted[:-1, column], expected, rtol=0, atol=0.5)
    for column in (Column.SAMPLES, Column.NONFINITE):
        assert torch.equal(weighted[:, column], raw[:, column]), "they are counts"


class Launches(TorchDispatchMode):
    """Counts the operations that would be a kernel each: all but views, and our own kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def as_one(self, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The reference's operations stand for one launch."""

        def launch(*args: Any) -> Any:
            before = [*self.names]
            result = kernel(*args)
            self.names[:] = [*before, kernel.__name__]
            return result

        return launch

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        returns = function._schema.returns
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        if not view and function is not torch.ops.aten.detach.default:
            self.names.append(function._schema.name.split("::")[1])
        return function(*args, **(kwargs or {}))


def launches(
    plugin: Forward | None, function: Callable[..., Any], *, joined: bool = False
) -> list[str]:
    counter, one_pass = Launches(), Pass(plugin, function, joined=joined)
    kernels = {name: counter.as_one(getattr(reference, name)) for name in KERNELS}
    with patch.multiple(reference, **kernels), counter:
        one_pass()
    allocated_only = ("empty", "empty_like", "empty_strided")
    return [name for name in counter.names if name not in allocated_only]


def test_what_is_launched() -> None:
    """The table of docs/kernels.md; the rows are made on the CPU, where the batch is."""
    backend = Backend("cuda", reference)
    vanilla = launches(None, loss_func)
    beside = launches(forward(backend), loss_func)
    weighted = launches(forward(backend, "lagged"), loss_func)
    rows = launches_of_rows()
    noted = ["round", "equal"]  # whether the host will drop a part of a token; of the CPU's mask
    assert vanilla == ["mul", "sum", "sum", "clone", "_to_copy", "clone", "cat", "mul"]
    assert beside == [*rows, *noted, *vanilla[:-1], "reduce", "mul"]
    assert weighted == [*rows, *noted, *vanilla[:-1], "loss", "gradient"]
    ours = ["loss", "gradient"]
    for kind in (None, "lagged"):
        assert launches(forward(backend, kind), our_loss_func) == [*rows, *ours]
        joined = launches(forward(backend, kind), our_loss_func, joined=True)
        assert joined == [*rows, *ours], "rows that are joined and not cut are a view"
    assert len(ours) < len(vanilla)


@pytest.mark.parametrize("kind", [None, "lagged", "domain", "sample"])
@pytest.mark.parametrize("name", BACKENDS)
def test_joined_rows_are_the_same_rows(name: str, kind: str | None) -> None:
    apart, joined = forward(BACKENDS[name], kind), forward(BACKENDS[name], kind)
    loss, _, gradient = Pass(apart, loss_func)()
    joined_loss, _, joined_gradient = Pass(joined, loss_func, joined=True)()
    assert torch.allclose(joined_loss, loss, rtol=ROUNDING, atol=0)
    assert torch.equal(joined_gradient.view(gradient.shape), gradient)
    assert torch.equal(joined.ledger.sums, apart.ledger.sums)


def launches_of_rows() -> list[str]:
    """Operations on the host's side of a real run."""
    counter = Launches()
    _, batch = microbatch()
    plugin = forward(Backend("cuda", reference))
    tap = BatchTap(iter([batch]))
    next(tap)
    losses = torch.zeros(3, 16)
    with counter:
        plugin._rows(tap, SOURCE, losses)
    return counter.names
