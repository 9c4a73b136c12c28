"""A plan, and the run that its flags make: the samples of each domain are those planned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.launch import Run, train

from domain_pretrain.commands import main as cli
from domain_pretrain.planning.output import flags_of

pytestmark = pytest.mark.megatron

PLAN = """
seq_length: 32
global_batch_size: 8
split: 80,10,10
epochs: 2
domains:
  finance: {corpora}/finance
  general: {corpora}/general
  puzzles: {{code: {corpora}/code, maths: {corpora}/maths, rare: {corpora}/rare}}
parts:
  puzzles: {{code: 2, maths: 1}}
stages:
  - samples: 135
    mix: {{finance: 3, general: 1, puzzles: 2}}
"""


def test_a_run_takes_what_was_planned(
    tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("budget.yaml").write_text(PLAN.format(corpora=corpora), "utf-8")
    assert cli.main(["plan", "budget.yaml"]) == 0
    plan = json.loads(Path("budget.plan/plan.json").read_text("utf-8"))
    assert (plan["samples"], plan["iterations"]) == (128, 16)
    assert plan["left_out"] == ["puzzles/rare"]
    rate = plan["learning_rate_flags"]
    run = train(tmp_path / "log", *flags_of("budget.plan/plan.json"), *rate)
    planned: Counter[str] = Counter()
    for one in plan["prefixes"]:
        planned[one["domain"]] += one["samples"]
    assert planned == {"finance": 64, "general": 21, "puzzles": 43}
    _check_served(run, planned)


STAGES = """
stages:
  - samples: 64
    mix: {finance: 3, general: 1, puzzles: 2}
  - samples: 32
    mix: {general: 1, puzzles: {maths: 3}}
"""


def test_a_run_takes_its_stages_one_after_the_other(
    tmp_path: Path, corpora: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    head = PLAN.format(corpora=corpora).partition("stages:")[0].partition("parts:")[0]
    Path("budget.yaml").write_text(head + STAGES, "utf-8")
    assert cli.main(["plan", "budget.yaml"]) == 0
    plan = json.loads(Path("budget.plan/plan.json").read_text("utf-8"))
    assert [stage["iterations"] for stage in plan["stages"]] == [8, 4]
    run = train(tmp_path / "log", *flags_of("budget.plan/plan.json"), *plan["learning_rate_flags"])
    for number, steps in enumerate([(1, 8), (9, 12)]):
        by_domain = plan["stages"][number]["samples_by_domain"]
        planned = {name: sum(parts.values()) for name, parts in by_domain.items()}
        _check_served(run, planned, *steps)


def _check_served(run: Run, planned: Mapping[str, int], first: int = 1, last: int = 16) -> None:
    """The lines of the steps hold the samples, within one of each domain."""
    lines = [line for line in run.metrics() if first <= line["iteration"] <= last]
    assert lines[-1]["iteration"] == last
    served: Counter[str] = Counter()
    for line in lines:
        served.update({name: values["samples"] for name, values in line["domains"].items()})
    assert served.keys() == planned.keys()
    assert all(abs(served[name] - planned[name]) <= 1 for name in planned), served
    assert sum(served.values()) == sum(planned.values())
