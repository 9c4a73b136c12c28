"""A plan, and the run that its flags make: the samples of each domain are those planned."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from support.launch import train

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
    served: Counter[str] = Counter()
    lines = run.metrics()
    for line in lines:
        served.update({name: values["samples"] for name, values in line["domains"].items()})
    assert lines[-1]["iteration"] == 16
    assert served.keys() == planned.keys()
    assert all(abs(served[name] - planned[name]) <= 1 for name in planned), served
    assert sum(served.values()) == plan["samples"]
