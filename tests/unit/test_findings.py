"""Where a finding goes: events file, console, TensorBoard, W&B, a program; and its documents."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from domain_pretrain.errors import ConfigError
from domain_pretrain.kernels.digest import Digest
from domain_pretrain.records.console import Console
from domain_pretrain.records.events_file import EventsFile
from domain_pretrain.records.exporter import Exporter, Publisher
from domain_pretrain.records.reader import EVENTS_FILE, read_findings
from domain_pretrain.records.record import Event, Finding
from domain_pretrain.records.scalars import WandB
from domain_pretrain.records.tensorboard import TensorBoard
from domain_pretrain.watch.command import Command, check_command
from domain_pretrain.watch.documents import Documents, trace_command

DOCUMENT = {
    "prefix": "data/code",
    "document": 17,
    "first": 40,
    "tokens": 89,
    "surprise": 7.25,
    "entropy": 3.5,
    "copies": 1,
    "text": "\x00ÿ",
}
FINDING = Finding(
    rule="spike",
    domain="code",
    iteration=30,
    severity="warning",
    message="loss of code jumps up",
    cause="data",
    evidence={"z": 9.5, "iterations": [30, 31], "nothing": float("nan")},
    advice="Read them.",
)
TRACED = Finding(**{**FINDING.__dict__, "documents": (DOCUMENT,)})


def test_the_events_file_has_findings_and_events(tmp_path: Path) -> None:
    file = EventsFile(tmp_path, 0)
    file.event(Event("change", 3, "another blend"))
    file.finding(FINDING)
    file.traced(FINDING)  # without documents there is nothing to add
    file.finding(Finding("all_moved", None, 31, "error", "all"))
    file.traced(TRACED)
    file.close()
    lines = [json.loads(line) for line in (tmp_path / EVENTS_FILE).read_text().splitlines()]
    assert [line.get("finding") or line["event"] for line in lines] == [
        *("change", "spike", "all_moved", "spike"),
    ]
    assert lines[1]["evidence"] == {"z": 9.5, "iterations": [30, 31], "nothing": None}
    first, second = read_findings(tmp_path)
    assert (first.rule, first.documents, first.advice) == ("spike", (DOCUMENT,), "Read them.")
    assert (second.rule, second.domain, second.documents) == ("all_moved", None, ())
    assert read_findings(tmp_path / "elsewhere.jsonl") == []


def test_a_resumed_run_finds_what_comes_after_its_checkpoint_again(tmp_path: Path) -> None:
    for after, at in ((0, 10), (0, 20), (10, 20)):
        file = EventsFile(tmp_path, after if after else None)
        file.finding(Finding("dirty", "code", at, "warning", f"after {after}"))
        file.close()
    assert [(one.iteration, one.message) for one in read_findings(tmp_path)] == [
        (10, "after 0"),
        (20, "after 10"),
    ]
    assert (tmp_path / "domain_metrics.discarded.jsonl").read_text().count("dirty") == 1


def test_the_console_tells_cause_advice_and_documents() -> None:
    out: list[str] = []
    console = Console("token", out.append)
    console.finding(FINDING)
    console.traced(FINDING)
    console.traced(TRACED)
    assert out == [
        "channel loss | WARNING: loss of code jumps up; likely cause: data",
        "channel loss |   Read them.",
        "channel loss | documents behind spike in code at iteration 30, the worst first:",
        "channel loss |   document 17[40:129] of data/code (7.25 nats/token surprise, "
        "3.50 nats/token entropy): '\\x00ÿ'",
    ]


def test_the_console_names_no_domain_where_all_are_concerned() -> None:
    out: list[str] = []
    console = Console("token", out.append)
    console.traced(Finding("all_moved", None, 31, "error", "all", documents=(DOCUMENT,)))
    assert out[0] == "channel loss | documents behind all_moved at iteration 31, the worst first:"


def test_tensorboard_has_a_text() -> None:
    texts: list[tuple[Any, ...]] = []
    writer = SimpleNamespace(add_text=lambda *given: texts.append(given), flush=lambda: None)
    board = TensorBoard(writer, "token", print, after_iteration=0, hyperparameters={}, config={})
    board.finding(FINDING)
    board.traced(FINDING)
    board.traced(TRACED)
    assert [(tag, iteration) for tag, _, iteration in texts] == [("alarms/spike", 30)] * 2
    assert "loss of code jumps up" in texts[0][1]
    assert "document 17[40:129] of data/code" in texts[1][1]


def test_wandb_has_an_alert() -> None:
    alerts: list[dict[str, Any]] = []
    wandb = SimpleNamespace(alert=lambda **given: alerts.append(given))
    WandB(wandb, "token").finding(FINDING)
    (alert,) = alerts
    assert (alert["title"], alert["level"]) == ("spike: code", "WARN")
    WandB(SimpleNamespace(), "token").finding(FINDING)  # what stands for it may have none


def test_a_wandb_that_fails_ends_no_run() -> None:
    def alert(**given: Any) -> None:
        raise ConnectionError("no network")

    out: list[str] = []
    WandB(SimpleNamespace(alert=alert), "token", out.append).finding(FINDING)
    assert out == ["channel loss | wandb.alert failed: ConnectionError: no network"]


# The user's program.


def program(tmp_path: Path, body: str) -> list[str]:
    script = tmp_path / "told.py"
    script.write_text(f"import sys\n{body}\n")
    return [sys.executable, str(script), str(tmp_path / "got $HOME; true")]


def test_the_command_reads_json(tmp_path: Path) -> None:
    """Its arguments are what they are: no shell looks at them."""
    argv = program(tmp_path, "open(sys.argv[1], 'a').write(sys.stdin.read())")
    out: list[str] = []
    command = Command(argv, out.append)
    command.traced(TRACED)
    command.traced(Finding("dirty", "maths", 31, "warning", "dirty"))
    command.close()
    first, second = map(json.loads, Path(argv[2]).read_text("utf-8").splitlines())
    assert (first["finding"], first["documents"]) == ("spike", [DOCUMENT])
    assert second["domain"] == "maths"
    assert not out


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('no such channel')", "ended with 1: no such channel"),
        ("import time; time.sleep(600)", "was ended: it took more than 1 seconds"),
    ],
)
def test_a_command_that_fails_is_told(body: str, said: str, tmp_path: Path) -> None:
    out: list[str] = []
    command = Command(program(tmp_path, body), out.append, timeout=1.0)
    command.traced(FINDING)
    command.close()
    assert out == [f"channel loss | watch.command {sys.executable!r} {said}"]


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"^watch.command: there is no program '/no/such'"):
        check_command(["/no/such", "x"])
    check_command([])
    check_command([sys.executable])


# Its documents.


class Recorder(Exporter):
    def __init__(self) -> None:
        self.calls: list[tuple[str, Finding]] = []

    def finding(self, finding: Finding) -> None:
        self.calls.append(("finding", finding))

    def traced(self, finding: Finding) -> None:
        self.calls.append(("traced", finding))


def test_without_a_tracer_a_finding_is_complete_at_once() -> None:
    recorder = Recorder()
    Publisher([recorder]).finding(FINDING)
    assert recorder.calls == [("finding", FINDING), ("traced", FINDING)]


def test_a_trace_does_not_hold_up_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def trace(self: Documents, finding: Finding) -> Any:
        assert go.wait(60)
        return (DOCUMENT,)

    monkeypatch.setattr(Documents, "_trace", trace)
    recorder = Recorder()
    publisher = Publisher([recorder], Documents(tmp_path))
    publisher.finding(FINDING)
    publisher.line(None)  # type: ignore[arg-type]
    assert recorder.calls == [("finding", FINDING)]
    go.set()
    publisher.close()
    assert recorder.calls[1:] == [("traced", TRACED)]


def test_each_finding_is_traced_once_whatever_happens(tmp_path: Path) -> None:
    """There is no run in the folder: told once, and the findings are handed on without."""
    out: list[str] = []
    recorder = Recorder()
    publisher = Publisher([recorder], Documents(tmp_path, out.append))
    nowhere = Finding("forgetting", "code", 5, "warning", "of an evaluation")
    for finding in (FINDING, nowhere, FINDING):
        publisher.finding(finding)
    publisher.close()
    traced = [finding for what, finding in recorder.calls if what == "traced"]
    assert sorted(one.rule for one in traced) == ["forgetting", "spike", "spike"]
    assert all(not one.documents for one in traced)
    (note,) = out
    assert "the documents behind a finding cannot be told" in note


@pytest.mark.parametrize(
    ("rule", "evidence", "order"),
    [
        ("spike", {"direction": "up"}, "odd"),
        ("too_low", {"direction": "down"}, "monotonous"),
        ("duplicate", {"direction": "repeated"}, "copied"),
        ("their_own", {}, "odd"),
    ],
)
def test_what_is_asked_of_the_trace(rule: str, evidence: dict[str, Any], order: str) -> None:
    finding = Finding(
        rule, "code/x", 9, "warning", "", evidence={"iterations": [9, 11], **evidence}
    )
    words = trace_command(Path("run"), finding)
    assert words[words.index("--iteration") + 1] == "9:11"
    assert words[words.index("--domain") + 1] == "code/x"
    assert words[words.index("--worst") + 1] == order


def test_ranks_that_found_something_else_have_another_digest() -> None:
    one, other = (Digest("config", torch.device("cpu")) for _ in range(2))
    assert one.of(None).tolist() == other.of(None).tolist()
    one.note("spike in code")
    assert one.of(None).tolist() != other.of(None).tolist()
    other.note("spike in code")
    assert one.of(None).tolist() == other.of(None).tolist()


ENDING = """
import atexit, sys
from pathlib import Path
from domain_pretrain.records.exporter import Publisher
from domain_pretrain.records.record import Finding
from domain_pretrain.watch.command import Command
from domain_pretrain.watch.documents import Documents

body = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read())"
command = Command([sys.executable, "-c", body, sys.argv[1]], print)
publisher = Publisher([command], Documents(Path("nowhere"), print))
atexit.register(publisher.close)
for number in (1, 2):
    publisher.finding(Finding("spike", "code", number, "warning", "up", evidence={
        "iterations": [number, number + 1]}))
"""


def test_what_is_found_at_the_very_end_is_told(tmp_path: Path) -> None:
    """Python 3.12 starts no thread and does not fork while a process ends."""
    told = tmp_path / "told.jsonl"
    words = [sys.executable, "-c", ENDING, str(told)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert [json.loads(line)["iteration"] for line in told.read_text("utf-8").splitlines()] == [
        1,
        2,
    ]
    assert "cannot be told" in done.stdout
    assert "nowhere" in done.stdout, "the trace itself ran, and found no run there"
    assert "Traceback" not in done.stderr
