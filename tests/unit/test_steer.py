"""From losses to multipliers, in every scope, on one process and on four."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import steer_worker
import torch
import torch.multiprocessing

from domain_pretrain.errors import ConfigError, IntegrityError
from domain_pretrain.flow.domain_step import DomainStep

NAMES = ("finance", "general", "rare")
GLOBAL = {"strategy": "linupper", "warmup_steps": 0}
WITHIN = {"strategy": "linupper", "warmup_steps": 0, "scope": "microbatch"}
SAMPLE = {**WITHIN, "unit": "sample"}
Data = tuple[list[int], list[float]]  # ids and losses of rows of four tokens


def create(
    section: dict[str, Any] | None, names: tuple[str, ...] = NAMES, **how: Any
) -> DomainStep:
    return DomainStep.create(names, section, tokens_per_step=32, **how)


def train(step: DomainStep, *microbatches: Data, skipped: bool = False) -> list[float]:
    """One step; the weighted losses of its microbatches."""
    step.open()
    losses = []
    for ids, values in microbatches:
        rows = torch.tensor(values)[:, None].expand(-1, 4)
        losses.append(float(step.loss(rows, torch.ones(len(ids), 4), torch.tensor(ids))))
    step.end_step(skipped=skipped)
    return losses


def test_four_processes(tmp_path: Path) -> None:
    """DP2 × CP2 and DP4: see steer_worker.py, whose assertions end up here."""
    torch.multiprocessing.spawn(steer_worker.run, (str(tmp_path),), nprocs=4)


FIRST: Data = ([0, 1, 2, 1], [1.0, 3.0, 5.0, 3.0])
# Scores 0, 1, 1: weights 1 : e : e of shares 1/4, 1/2, 1/4, 1 % of uniform mixed in.
E = math.e
W = [0.99 * p / (1 + 2 * E) + 0.01 / 3 for p in (1, E, E)]
M = [w / (0.25 * W[0] + 0.5 * W[1] + 0.25 * W[2]) for w in W]


def test_global_batch_lags_by_one_step() -> None:
    step = create(GLOBAL)
    assert train(step, FIRST) == [4 * 12.0]
    assert step.multipliers() == {"finance": 1.0, "general": 1.0, "rare": 1.0}
    weighted = 4 * (M[0] * 1 + M[1] * 6 + M[2] * 5)
    assert train(step, FIRST, FIRST) == pytest.approx([weighted, weighted], rel=1e-6)
    found = step.multipliers()
    assert list(found.values()) == pytest.approx(M, rel=1e-6)
    assert step.stats().total.loss_sum == 2 * 4 * 12.0, "statistics stay unweighted"


def test_within_the_microbatch_is_the_recipe() -> None:
    """Σ w_d·L_d of this very microbatch, times its tokens; the next one stands for itself."""
    step = create(WITHIN)
    loss = 16 * (1 * 1 + E * 3 + E * 5) / (1 + 2 * E)
    single: Data = ([1, 1], [2.0, 7.0])
    assert train(step, FIRST, single) == pytest.approx([loss, 4 * 9.0], rel=1e-6)


def test_within_samples_is_the_paper() -> None:
    step = create(SAMPLE)
    total = 1 + 3 * E  # scores 0, 1, 1, 1
    loss = 16 * (1 * 1 + E * 3 + E * 5 + E * 3) / total
    assert train(step, FIRST) == pytest.approx([loss], rel=1e-6)


@pytest.mark.parametrize("section", [GLOBAL, WITHIN])
def test_a_single_domain_is_never_moved(section: dict[str, Any]) -> None:
    plain, step = create(None), create(section)
    for number in range(3):
        data: Data = ([1, 1], [2.0 + number, 1 / 3])
        assert train(step, data) == train(plain, data)
        assert step.multipliers() == {"general": 1.0}


@pytest.mark.parametrize("section", [GLOBAL, WITHIN, SAMPLE])
def test_equal_losses_change_nothing(section: dict[str, Any]) -> None:
    section = {**section, "objective": "token_share"} if section is not SAMPLE else section
    plain, step = create(None), create(section)
    for _ in range(2):
        data: Data = ([0, 1, 2, 2], [1 / 3] * 4)
        assert train(step, data) == train(plain, data)


@pytest.mark.parametrize("section", [GLOBAL, WITHIN, SAMPLE])
def test_warmup_and_ones(section: dict[str, Any]) -> None:
    plain, step = create(None), create({**section, "warmup_steps": 3})
    assert [train(step, FIRST) for _ in range(3)] == [train(plain, FIRST) for _ in range(3)]
    assert train(step, FIRST) != train(plain, FIRST)


@pytest.mark.parametrize("section", [GLOBAL, WITHIN])
def test_nan_in_one_domain(section: dict[str, Any]) -> None:
    """It keeps what it had (here: one); the others are weighed as if it were not there."""
    bad: Data = ([0, 1, 2], [1.0, 3.0, math.nan])
    step = create(section)
    train(step, bad)
    train(step, bad)
    found = step.multipliers()
    assert found["rare"] == 1.0
    assert 0.5 < found["finance"] < 1 < found["general"] < 1.5
    assert step.stats().get("rare").nonfinite == 4  # type: ignore[union-attr]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 2e6])
@pytest.mark.parametrize("unit", ["domain", "sample"])
def test_what_is_not_finite_is_left_out_of_a_microbatch(unit: str, bad: float) -> None:
    """One token or two of a sample, or domain: it has 1, the others what they have without it."""
    found = []
    for count in (1, 2):
        step = create({**WITHIN, "unit": unit})
        losses = torch.tensor([[1.0], [2.0], [3.0]]).repeat(1, 4)
        losses[2, :count] = bad
        step.open()
        step.loss(losses.requires_grad_(), torch.ones(3, 4), torch.tensor([0, 1, 2]))
        assert step.steering is not None and step.steering.in_force is not None
        found.append(step.steering.in_force.tolist())
    two = 1 + E  # scores 0 and 1, of twice their share
    assert found[0] == found[1] == pytest.approx([2 / two, 2 * E / two, 1.0], rel=1e-6)


@pytest.mark.parametrize("section", [GLOBAL, WITHIN])
def test_a_thousand_domains(section: dict[str, Any]) -> None:
    step = create(section, tuple(f"d{number}" for number in range(1000)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        ids = torch.randint(0, 900, (64,), generator=generator).tolist()
        train(step, (ids, (torch.rand(64, generator=generator) * 9).tolist()))
        found = step.multipliers()
        assert found.keys() == {f"d{number}" for number in ids}, "absent is absent"
        assert all(0 <= m < 1e3 for m in found.values())
    assert len(set(found.values())) > 2


def test_pinned_and_floor() -> None:
    step = create(GLOBAL, pinned=["finance"], floor={"general": 0.9})
    train(step, FIRST)
    train(step, FIRST)
    found = step.multipliers()
    assert found["finance"] == 1.0
    assert found["general"] == pytest.approx(0.9)  # of general and rare, rare is the harder


@pytest.mark.parametrize("section", [GLOBAL, WITHIN, SAMPLE])
def test_skipped_steps_and_repeated_attempts_do_not_advance(section: dict[str, Any]) -> None:
    section = {**section, "temperature": {"start": 4.0, "end": 0.5, "steps": 3}}
    step, disturbed = create(section), create(section)
    other: Data = ([0, 1, 2, 2], [9.0, 1.0, 2.0, 4.0])
    for data in (FIRST, other, FIRST, other):
        before = disturbed.state_dict()["reweight"]
        train(disturbed, other, skipped=True)
        assert disturbed.state_dict()["reweight"] == before
        disturbed.open()  # an attempt that is thrown away
        disturbed.loss(torch.rand(2, 4), torch.ones(2, 4), torch.tensor([0, 2]))
        assert train(disturbed, data) == train(step, data)
    assert disturbed.state_dict()["reweight"] == step.state_dict()["reweight"]


def test_diagnostics_are_of_the_multipliers_that_were_in_force() -> None:
    step = create({**GLOBAL, "warmup_steps": 2})
    found = []
    for _ in range(3):
        train(step, FIRST)
        assert step.steering is not None
        found.append(step.steering.diagnostics(step.stats()))
    n, m = np.array([4.0, 8.0, 4.0]), np.array(M)
    expected = (n @ m) ** 2 / (n.sum() * (n @ m**2))
    assert found[:2] == [{}, {}], "nothing was weighed"
    assert found[2]["effective_tokens"] == pytest.approx(expected)
    assert found[2]["effective_domains"] == pytest.approx(1 / sum(w**2 for w in W))


@pytest.mark.parametrize("strategy", ["linupper", "group_dro", "bandit", "learnability"])
def test_resume(strategy: str) -> None:
    section = {"strategy": strategy, "warmup_steps": 2}
    unbroken, step = create(section), create(section)
    for number in range(6):
        if number == 3:  # a new process
            state = step.state_dict()
            step = create(section)
            step.load_state_dict(state)
        data: Data = ([0, 1, 2, 1], [1.0 + number, 3.0, 1 / 3, 2.0 - 0.1 * number])
        assert train(step, data) == train(unbroken, data)
    assert step.state_dict() == unbroken.state_dict()


def test_resume_maps_domains_by_name() -> None:
    step = create(GLOBAL)
    train(step, FIRST)
    state = step.state_dict()
    was = state["reweight"]["multipliers"]

    turned = create(GLOBAL, NAMES[::-1])
    turned.load_state_dict(state)
    assert turned.state_dict()["reweight"]["multipliers"] == was

    other = ("general", "fresh")
    with pytest.raises(ConfigError, match=r"gone \['finance', 'rare'\], new \['fresh'\]"):
        create(GLOBAL, other).load_state_dict(state)
    changed = create(GLOBAL, other, allow_domain_change=True)
    changed.load_state_dict(state)
    found = changed.state_dict()["reweight"]
    assert found["multipliers"] == {"general": 1.0, "fresh": 1.0}, "until the next step"
    assert found["ema"]["loss_sum"]["general"] == state["reweight"]["ema"]["loss_sum"]["general"]


@pytest.mark.parametrize("before", [None, GLOBAL, WITHIN, SAMPLE])
@pytest.mark.parametrize("after", [None, GLOBAL, WITHIN, SAMPLE])
def test_resume_with_another_way(before: Any, after: Any) -> None:
    """What can be kept is kept: the statistics always, the count of steps between the scopes."""
    step, changed = create(before), create(after)
    train(step, FIRST)
    changed.load_state_dict(step.state_dict())
    assert changed.windows.consumed() == step.windows.consumed()
    if before and after:
        assert changed.state_dict()["reweight"]["step"] == 1
    train(changed, FIRST)


BAD = {
    "temperature": ({**GLOBAL, "temperature": 0}, r"reweight\.temperature: .*greater than 0"),
    "temperature within": ({**WITHIN, "temperature": -1}, r"reweight\.temperature: .*greater"),
    "temperature schedule": (
        {**GLOBAL, "temperature": {"start": 0, "end": 1, "steps": 5}},
        r"reweight\.temperature\.start: .*greater than 0 \(given: 0\)",
    ),
    "strategy": ({"strategy": "linuper"}, r"reweight\.strategy: .*'linuper'; did you mean 'linupp"),
    "strategy within": (
        {**WITHIN, "strategy": "bandit"},
        r"reweight\.strategy: needs the losses of whole steps\. With scope: microbatch use one of "
        r"linupper, quadratic, extremes \(given: 'bandit'\)",
    ),
    "unknown within": (
        {**WITHIN, "strategy": "linuper"},
        r"reweight\.strategy: unknown strategy; did you mean 'linupper'\? With scope: microbatch u",
    ),
    "key within": (
        {**WITHIN, "temprature": 1},
        r"reweight\.temprature: .*did you mean 'temperature'\? \(known keys: temperature, scope, u",
    ),
    "key": ({**GLOBAL, "temprature": 1}, r"reweight\.temprature: .*did you mean 'temperature'"),
    "reference": (
        {"strategy": "excess", "reference": {"finance": 2.0, "rare": 2.0}},
        r"reweight\.reference: no value for domain 'general'",
    ),
    "no reference": ({"strategy": "excess"}, r"reweight\.reference: Field required"),
    "weights": ({"strategy": "static", "weights": {"x": 1}}, r"reweight\.weights: there is no dom"),
    "clip": ({**GLOBAL, "clip": [2, 3]}, r"reweight\.clip: .*0 <= low < 1 < high"),
    "warm-up": ({**GLOBAL, "warmup_steps": -1}, r"reweight\.warmup_steps: .*greater than or equal"),
    "sample": ({**GLOBAL, "unit": "sample"}, "unit: sample needs scope: microbatch"),
    "idle key": (
        {**WITHIN, "uniform_part": 0.5},
        r"reweight\.uniform_part: has no effect with scope: microbatch: take it out",
    ),
    "idle old key": ({**WITHIN, "blend": 0.5}, r"reweight\.blend: has no effect with scope: micro"),
    "idle objective": (
        {**SAMPLE, "objective": "token_share"},
        r"reweight\.objective: has no effect with scope: microbatch and unit: sample: take it out",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values(name: str) -> None:
    section, message = BAD[name]
    with pytest.raises(ConfigError, match=message):
        create(section)


@pytest.mark.parametrize("section", [GLOBAL, WITHIN])
def test_bad_domains(section: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="pinned: there is no domain 'code'"):
        create(section, pinned=["code"])


def test_floor_needs_the_global_batch() -> None:
    with pytest.raises(ConfigError, match=r"domains\.rare\.floor has no effect with scope: micro"):
        create(WITHIN, floor={"rare": 0.5})


def test_pinned_needs_domains() -> None:
    with pytest.raises(ConfigError, match=r"domains\.rare\.pinned has no effect with unit: sample"):
        create(SAMPLE, pinned=["rare"])


@pytest.mark.parametrize(
    ("mask", "ids"),
    [
        ((1, 8), torch.tensor([0, 1])),
        ((1, 8), torch.tensor([0, 1, 2, 0])),
        ((2, 8), torch.tensor([[0], [1]])),
        ((2, 8), torch.tensor([0.9, 1.0])),
        ((8,), torch.tensor([0])),
    ],
)
def test_a_loop_gives_an_id_for_each_sample(mask: tuple[int, ...], ids: torch.Tensor) -> None:
    step = create(None)
    step.open()
    with pytest.raises(ValueError, match=r"takes loss_mask \[b, s\] and ids \[b\].* got \("):
        step.loss(torch.ones(mask), torch.ones(mask), ids)


def test_ids_out_of_range() -> None:
    step = create(None)
    train(step, ([0, 3], [1.0, 1.0]))
    with pytest.raises(IntegrityError, match="4 tokens carry a domain id outside of the 3 domains"):
        step.stats()
