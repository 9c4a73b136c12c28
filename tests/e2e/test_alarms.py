"""Alarms in real training: the same on every rank of every layout, and with their documents."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.corpora import DOMAINS, SHARES
from support.launch import Run, train

from domain_pretrain.records.reader import read_findings
from domain_pretrain.records.record import Finding

pytestmark = pytest.mark.megatron

STEPS, JUMP = 44, 38
LAYOUTS = {
    "tp2-pp2": "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2",
    "cp2-dp2": "--context-parallel-size 2",
}
# Counts of samples that are compared exactly, once; a jump that is far beyond any rounding. Of each
# finding the documents are traced, by a process that imports Megatron.
WATCH = {"alarms": {"starved": {"samples": 190, "share": 1.0}, "spike": {"nats": 2.0}}}


def watched(folder: Path, *flags: str | Path, watch: Any = WATCH, **how: Any) -> Run:
    (folder / "config.yaml").write_text(yaml.safe_dump({"watch": watch}), encoding="utf-8")
    config = ["--domain-config", folder / "config.yaml", "--calculate-per-token-loss"]
    return train(folder, *flags, *config, iterations=STEPS, script="jumping_gpt.py", **how)


@pytest.fixture(scope="module")
def start(base_checkpoint: Path, blend: list[str]) -> list[str]:
    """The same weights and data in every layout."""
    batch = ["--micro-batch-size", "4"]  # the fewest passes; jumping_gpt.py counts them
    return [*blend, *batch, "--load", str(base_checkpoint), "--finetune", "--no-load-rng"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, start: list[str]) -> tuple[Run, Path]:
    """One process, and a program that keeps what it is told."""
    folder = tmp_path_factory.mktemp("alone")
    script = folder / "told.py"
    script.write_text("import sys\nopen(sys.argv[1], 'a').write(sys.stdin.read())\n", "utf-8")
    command = [sys.executable, str(script), str(folder / "told.jsonl")]
    cache = ["--data-cache-path", folder / "cache"]
    return watched(folder, *start, *cache, watch={**WATCH, "command": command}), folder


def test_a_jump_is_found_and_traced(alone: tuple[Run, Path]) -> None:
    run, folder = alone
    (jump, *more) = [one for one in read_findings(folder) if one.rule == "spike"]
    assert (jump.domain, jump.iteration, jump.cause) == ("general", JUMP, "data")
    assert jump.evidence["onset"] < JUMP
    assert jump.evidence["iterations"] == [JUMP, JUMP + 1]
    assert jump.evidence["samples"] == [8 * (JUMP - 1), 8 * JUMP]
    assert [(one.domain, one.evidence["sustained"]) for one in more] == [("general", True)]
    assert {Path(str(one["prefix"])).name for one in jump.documents} == {"general"}
    assert f"ERROR: {more[0].message}; likely cause: data" in run.output
    assert "documents behind spike in general" in run.output
    shares = dict(zip(DOMAINS, SHARES, strict=True))
    for one in (one for one in read_findings(folder) if one.rule == "starved"):
        first, stop = one.evidence["samples"]
        due = (stop - first) * shares[str(one.domain)] / sum(SHARES)
        assert math.isclose(one.evidence["due"], due)
    told = [json.loads(line) for line in (folder / "told.jsonl").read_text("utf-8").splitlines()]
    found = [(one.rule, one.domain, one.iteration) for one in read_findings(folder)]
    assert sorted((one["finding"], one["domain"], one["iteration"]) for one in told) == sorted(
        found
    )
    assert next(one for one in told if one["finding"] == "spike")["documents"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_findings_are_those_of_every_layout(
    layout: str, alone: tuple[Run, Path], start: list[str], tmp_path: Path
) -> None:
    """Every rank proves in the next step that it found the same, or the run would have ended."""
    watched(tmp_path, *start, *LAYOUTS[layout].split(), nproc=4)
    expected, got = read_findings(alone[1]), read_findings(tmp_path)
    assert {one.rule for one in expected} >= {"spike", "starved"}
    assert [_without_numbers(one) for one in got] == [_without_numbers(one) for one in expected]
    for one, other in zip(got, expected, strict=True):
        for key in other.evidence.keys() & {"loss", "expected", "came", "due"}:
            assert math.isclose(one.evidence[key], other.evidence[key], rel_tol=0.01), key


def _without_numbers(finding: Finding) -> Any:
    evidence = {key: one for key, one in finding.evidence.items() if not isinstance(one, float)}
    documents = [(one["document"], one["sample"]) for one in finding.documents]
    known = (finding.rule, finding.domain, finding.iteration, finding.severity, finding.cause)
    return known, evidence, documents
