"""The table of planted faults: what counts as found, and what as unexplained."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "benchmarks" / "alarms"
sys.path.insert(0, str(FOLDER))

from faults import AT, FAULTS, KINDS  # noqa: E402
from judgement import judge, markdown, others, told  # noqa: E402

from domain_pretrain.records.events_file import EventsFile  # noqa: E402
from domain_pretrain.records.record import Finding  # noqa: E402
from domain_pretrain.watch.watch import DEFAULT  # noqa: E402

GARBAGE = next(fault for fault in FAULTS if fault.kind == "garbage")
RIGHT = Finding(
    "spike",
    "code",
    AT,
    "warning",
    "up",
    cause="data",
    documents=({"prefix": "somewhere/code", "document": 7, "copies": 1},),
)


def run_of(folder: Path, *findings: Finding) -> dict[str, Any]:
    file = EventsFile(folder, 0)
    for finding in findings:
        file.finding(finding)
    file.close()
    return {"folder": str(folder), "seconds": 1.0, "garbage": [7, 9]}


def test_every_fault_has_a_run_and_an_alarm() -> None:
    for fault in FAULTS:
        assert fault.kind in KINDS
        assert fault.rule in DEFAULT
        assert fault.domain is None or fault.domain in KINDS[fault.kind].weights


def test_what_is_right(tmp_path: Path) -> None:
    found = judge(GARBAGE, run_of(tmp_path, RIGHT))
    assert (found["alarm"], found["cause"], found["documents"]) == (True, True, True)
    assert found["iteration"] == AT


def test_what_is_wrong(tmp_path: Path) -> None:
    other = ({"prefix": "somewhere/code", "document": 8, "copies": 1},)
    wrong = {
        "alarm": replace(RIGHT, domain="maths"),
        "cause": replace(RIGHT, cause="optimizer"),
        "documents": replace(RIGHT, documents=other),
    }
    for number, (what, finding) in enumerate(wrong.items()):
        assert judge(GARBAGE, run_of(tmp_path / str(number), finding))[what] is False
    late = run_of(tmp_path / "late", replace(RIGHT, iteration=AT + 200))
    assert judge(GARBAGE, late)["alarm"] is False


def test_what_nothing_explains(tmp_path: Path) -> None:
    stray = replace(RIGHT, domain="maths", iteration=77)
    run = run_of(tmp_path, RIGHT, stray)
    assert [one.domain for one in others("garbage", run)] == ["maths"]
    page = markdown({"garbage": [told("garbage", {**run, "seed": 0})]})
    assert (
        "| one garbage batch | `spike` in `code` | 1 of 1 | 1 of 1 | 1 of 1 | 300, planted" in page
    )
    assert "1: spike in maths at 77" in page
    assert "| clean | 0 |" in page
