"""The fixed set by sample: the same sums, and the errors that they tell, against plain numpy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.metrics import windows

from domain_pretrain.data.origin import ById
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.moment import Moment
from domain_pretrain.flow.steer import Lagged
from domain_pretrain.flow.step import Step
from domain_pretrain.flow.tap import Source
from domain_pretrain.records.compact import compact, expand
from domain_pretrain.records.console import Console
from domain_pretrain.records.metrics_file import metrics_entry
from domain_pretrain.records.publisher import open_publisher
from domain_pretrain.records.record import Record
from domain_pretrain.records.samples import Samples
from domain_pretrain.records.scalars import scalar_values
from domain_pretrain.stats import SCALE, Column
from domain_pretrain.strategies import Course, Reweighter
from domain_pretrain.strategies.section import StepRule

CPU = torch.device("cpu")
NAMES = ("general", "code")
DOMAINS = (0, 0, 0, 1, 1, 1, 1)
SEQUENCE = 8
HOLD = {"strategy": "hold", "domains": "general", "epsilon": 0.05}
Losses = np.ndarray


def losses(seed: int) -> Losses:
    """Of the set's seven samples, ``[7, 8]``."""
    return np.random.default_rng(seed).gamma(4.0, 0.5, (len(DOMAINS), SEQUENCE))


# Samples 1 and 5 have fewer loss tokens than others, 4 has none.
MASK = np.ones((len(DOMAINS), SEQUENCE))
MASK[1, 3:], MASK[5, 1:], MASK[4] = 0, 0, 0


def forward_step(iterator: Iterator[dict[str, torch.Tensor]], model: Any = None) -> Any:
    batch = next(iterator)

    def loss_func(mask: torch.Tensor, output: torch.Tensor) -> tuple[Any, ...]:
        loss = torch.sum(output * mask)
        return loss, mask.sum().int(), {"lm loss": loss}

    return batch["losses"], partial(loss_func, batch["loss_mask"])


def make(log_dir: Path | None = None, after: int = 0) -> Step:
    rule = Reweighter.build(StepRule(**HOLD), NAMES, offers=frozenset({"valid", "lr", "progress"}))
    publisher = None
    if log_dir is not None:
        publisher = open_publisher(
            log_dir, None, None, "token", lambda text: None, after_iteration=after
        )
    return Step(NAMES, Groups(), CPU, publisher, Lagged(rule, "token", CPU))


def run(step: Step, of: Losses, source: Source, *, training: bool) -> None:
    """Microbatches of two samples; the last one is filled up with a masked copy of the first."""
    rows = [*range(len(of)), 0]
    for first in range(0, len(rows), 2):
        pair = rows[first : first + 2]
        mask = torch.tensor(MASK[pair], dtype=torch.float32)
        if first + 2 == len(rows):
            mask[1] = 0
        batch = {
            "losses": torch.tensor(of[pair], dtype=torch.float32),
            "loss_mask": mask,
            "dataset_id": torch.tensor(pair),
        }
        wrapped = step.wrap_forward_step(forward_step, source, training=training)
        if not training:
            step.evaluation.open_attempt(1)
        output, loss = wrapped(iter([batch]), None)
        loss(output)
        if not training:
            step.evaluation.close_step()


def evaluate(
    step: Step, of: Losses, iteration: int, *, by_sample: bool = True, **how: bool
) -> None:
    if by_sample:
        step.count_by_sample(DOMAINS)
    step.evaluation.open()
    source = Source(ById(tuple(range(len(DOMAINS))) if by_sample else DOMAINS))
    run(step, of, source, training=False)
    step.evaluation.close_set()
    step.close_evaluation("valid", iteration, iteration, **{"final": False, **how})


def train(step: Step, iteration: int) -> None:
    """A step; the learning rate falls from its peak, so there is no warm-up."""
    step.open()
    run(step, losses(9), Source(ById(DOMAINS)), training=True)
    step.close(Moment(iteration, iteration, True, True, 4, 64, course=Course(lr=1.0)))


def spread(sums: Losses, counts: Losses) -> float:
    """Of a ratio of means over samples, linearised, and independent of the code under test."""
    n, r = len(sums), sums.sum() / counts.sum()
    residuals = sums - r * counts
    return float(math.sqrt(n * residuals.var(ddof=1)) / counts.sum())


def of_domain(of: Losses, domain: int) -> tuple[Losses, Losses]:
    """Sums and counts of its samples that have tokens or not."""
    own = np.array(DOMAINS) == domain
    return (of * MASK)[own].sum(1), MASK[own].sum(1)


def test_counting_by_sample_gives_the_sums_of_counting_by_domain(tmp_path: Path) -> None:
    for name, by_sample in (("domain", False), ("sample", True)):
        step = make(tmp_path / name)
        evaluate(step, losses(1), 0, by_sample=by_sample)
        evaluate(step, losses(2), 2, by_sample=by_sample)
    by_domain, found = windows(tmp_path / "domain"), windows(tmp_path / "sample")
    assert [domain.keys() for domain in by_domain[0]["domains"].values()] == [
        {"loss", "loss_sum", "tokens", "samples"}
    ] * 2
    for entry in found:
        for domain, name in enumerate(NAMES):
            sums, counts = of_domain(losses(1 if entry is found[0] else 2), domain)
            error = entry["domains"][name].pop("error")
            assert error == pytest.approx(spread(sums, counts), rel=1e-5)
    assert found == by_domain


def test_a_rise_has_the_error_of_its_pairs(tmp_path: Path) -> None:
    """Two models that find the same samples hard differ by much less than either is uncertain."""
    before, after = losses(1), losses(1) + 0.02 * losses(2) - 0.15
    step = make(tmp_path)
    evaluate(step, before, 0)
    train(step, 1)
    evaluate(step, after, 1)
    base, _, now = windows(tmp_path)
    assert "risen" not in base
    (old, counts), (new, _) = of_domain(before, 0), of_domain(after, 0)
    rise = (new.sum() - old.sum()) / counts.sum()
    assert now["risen"] == {"general": pytest.approx(rise, rel=1e-4)}  # of what is held alone
    error = now["risen_error"]["general"]
    assert error == pytest.approx(spread(new - old, counts), rel=1e-4)
    assert error < 0.3 * now["domains"]["general"]["error"]


def test_the_base_goes_with_the_checkpoint(tmp_path: Path) -> None:
    step = make(tmp_path / "whole")
    assert "base" not in step.state_dict()
    evaluate(step, losses(1), 0)
    train(step, 1)
    evaluate(step, losses(2), 1)  # the step after it has not been yet
    state = json.loads(json.dumps(step.state_dict()))
    resumed = make(tmp_path / "resumed", after=1)
    resumed.load_state_dict(state)
    for one in (step, resumed):
        train(one, 2)
        evaluate(one, losses(3), 2)
    assert windows(tmp_path / "resumed") == windows(tmp_path / "whole")[-2:]
    assert resumed.state_dict() == step.state_dict()
    # One that was written without it: the rise is not told, rather than told wrong.
    old = make(tmp_path / "old", after=1)
    old.load_state_dict({key: one for key, one in state.items() if key not in ("base", "errors")})
    train(old, 2)
    evaluate(old, losses(3), 2)
    assert "risen" not in windows(tmp_path / "old")[-1]


def test_the_end_tells_where_the_run_stands(capfd: pytest.CaptureFixture[str]) -> None:
    step = make()
    evaluate(step, losses(1), 0)
    train(step, 1)
    evaluate(step, losses(1) + 0.25, 1, final=True)
    said = " ".join(capfd.readouterr().out.split())
    assert "hold: general is base + 0.250 ± 0.000 nats, epsilon 0.05; general had 0." in said


def test_a_broken_token_has_no_error_and_makes_no_base(tmp_path: Path) -> None:
    broken = losses(1)
    broken[1, 0] = math.nan
    step = make(tmp_path)
    evaluate(step, broken, 0)
    assert "base" not in step.state_dict()
    assert step.nonfinite_domains(training=False) == []
    entry = windows(tmp_path)[0]["domains"]
    assert (entry["general"]["error"], entry["general"]["nonfinite"]) == (None, 1)
    assert entry["code"]["error"] > 0
    step.count_by_sample(DOMAINS)
    step.evaluation.open()
    run(step, np.full_like(broken, math.inf)[:2], Source(ById((3, 4))), training=False)
    assert step.nonfinite_domains(training=False) == ["code"]


def record(**how: Any) -> Record:
    """Two samples of general with means 1 and 3 nats, of 8 tokens each; one of code."""
    sums = np.zeros((4, len(Column)), np.int64)
    for row, loss in enumerate((1.0, 3.0, 2.0)):
        sums[row] = [
            round(loss * SEQUENCE * SCALE[Column.LOSS]),
            SEQUENCE * SCALE[Column.TOKENS],
            1,
            round(loss * SCALE[Column.SAMPLE_LOSS]),
            0,
        ]
    samples = Samples(NAMES, (0, 0, 1), sums)
    return Record("valid", 4, 32, samples.stats(), samples=samples, **how)


@pytest.mark.parametrize("average", ["token", "sample"])
def test_where_errors_are_told(average: Any) -> None:
    """General: mean 2, deviation √2, error 1; of one sample nothing is known."""
    one = record(risen={"general": (0.5, 0.125)})
    entry = metrics_entry(one, average)
    assert [domain["error"] for domain in entry["domains"].values()] == [1.0, None]
    assert (entry["risen"], entry["risen_error"]) == ({"general": 0.5}, {"general": 0.125})
    assert expand(compact(entry, NAMES), NAMES) == entry  # as of more domains than are wide
    values = scalar_values(one, average)
    assert {key: values[key] for key in values if "loss" not in key and "ppl" not in key} == {
        "channel-error-valid/general": 1.0,
        "channel-risen-valid/general": 0.5,
        "channel-risen-error-valid/general": 0.125,
    }
    out: list[str] = []
    Console(average, out.append).line(one)
    assert [" ".join(line.split()) for line in out[0].splitlines()[1:]] == [
        "domain loss ± error ppl tokens",
        "general 2.000 1.0000 7.39 16",
        "code 2.000 7.39 8",
    ]
