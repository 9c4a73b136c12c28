"""What is done about a spike: pure decisions, the file of them, and what a rank writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from domain_pretrain.checkpoints.tracker import TRACKER, write_tracker
from domain_pretrain.config import DomainConfig
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.errors import ConfigError, LogFolderError
from domain_pretrain.flow.moment import Moment
from domain_pretrain.hosts import rollback
from domain_pretrain.hosts.rollback import Reaction, check_rollback, leave_out, tell_rollbacks
from domain_pretrain.records.exporter import Exporter, Publisher
from domain_pretrain.records.metrics_file import MetricsFile
from domain_pretrain.records.record import Event, Finding, Record
from domain_pretrain.stats import Column, DomainStats
from domain_pretrain.watch.decision import (
    DECISIONS_FILE,
    EXIT_CODE,
    Decision,
    add_decision,
    cuts_of,
    decide,
    read_decisions,
    spike_of,
)
from domain_pretrain.watch.section import Watching

BACK = Decision(
    action="rollback", iteration=9, onset=6, message="a jump", resume=5, samples=(56, 80)
)
STOP = Decision(action="stop", iteration=9, onset=6, message="a jump", reason="enough")


def found(iteration: int = 9, rule: str = "spike", severity: Any = "warning", **evidence: Any):
    return Finding(rule, "finance", iteration, severity, "a jump", evidence=evidence)


def test_what_is_acted_on() -> None:
    """The jump up that began first; not what is told for information, nor a fall."""
    assert spike_of([]) is None
    others = [
        found(rule="nonfinite", severity="error"),
        found(severity="info", onset=1),
        found(onset=1, direction="down"),
    ]
    assert spike_of(others) is None
    one, other = found(onset=6, direction="up"), found(onset=4, severity="error")
    assert spike_of([*others, one, other]) is other


@pytest.mark.parametrize(
    ("before", "changed", "reason"),
    [
        ([], {}, None),
        ([STOP, BACK, STOP], {}, None),  # only ways back count
        ([BACK, BACK], {}, "2 of at most 2 were made (watch.rollbacks)"),
        ([], {"resume": None}, "no checkpoint is left of iteration 6 or before"),
        (
            [],
            {"onset": None, "samples": None},
            "the metrics file has no line of iteration 7 or before",
        ),
    ],
)
def test_decisions(before: list[Decision], changed: dict[str, Any], reason: str | None) -> None:
    known: dict[str, Any] = {"onset": 6, "resume": 5, "samples": (56, 80), **changed}
    spike = found(onset=7)
    made = decide(spike, Watching(on_spike="rollback", rollbacks=2), before, **known)
    if reason is None:
        assert made == BACK
    else:
        assert made.action == "stop"
        assert made.samples is made.resume is None
        assert made.reason == reason
    made = decide(spike, Watching(on_spike="stop"), before, **known)
    assert (made.action, made.reason) == ("stop", "")


def test_the_file_of_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_decisions(tmp_path) == read_decisions(tmp_path / "none") == []
    add_decision(tmp_path, BACK)
    add_decision(tmp_path, STOP)
    assert read_decisions(tmp_path) == [BACK, STOP]
    assert cuts_of([BACK, STOP]) == [(56, 80)]
    assert [path.name for path in tmp_path.iterdir()] == [DECISIONS_FILE]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LogFolderError, match=r"cannot write .*: No space left on device"):
        add_decision(tmp_path, BACK)
    assert read_decisions(tmp_path) == [BACK, STOP]


WHOLE = BACK.model_dump(mode="json")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "Invalid JSON"),
        ('{"decisions": [', "Invalid JSON"),
        ("[]", "Input should be an object"),
        ({**WHOLE, "samples": None}, r"decisions\.0: .*a rollback needs resume and samples"),
        ({**WHOLE, "samples": [5, 5]}, r"samples should be \[first, stop\]"),
        ({**WHOLE, "samples": [-1, 5]}, r"decisions\.0\.samples\.0: .*greater than or equal to 0"),
        ({**WHOLE, "action": "skip"}, r"decisions\.0\.action: .*'stop' or 'rollback'"),
    ],
)
def test_a_file_that_does_not_say_what_is_left_out(
    content: str | dict[str, Any], problem: str, tmp_path: Path
) -> None:
    if isinstance(content, dict):
        content = json.dumps({"decisions": [content]})
    (tmp_path / DECISIONS_FILE).write_text(content)
    with pytest.raises(ConfigError, match=problem):
        read_decisions(tmp_path)


# --- a rank that writes --------------------------------------------------------------------------

STATS = DomainStats(("a",), np.ones((2, len(Column)), np.int64))
PLAN = Plan(("a",), (Stage(None, (1.0,)),), 200, ((8, 12), (60, 64)))


class Told(Exporter):
    def __init__(self) -> None:
        self.events: list[Event] = []
        self.closed = 0

    def event(self, event: Event) -> None:
        self.events.append(event)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """After iteration 9: lines of every third one, checkpoints of 4, 6, 8, and half of 10."""
    log = MetricsFile(tmp_path, "token", after_iteration=0, corpus_tokens={})
    for iteration in (3, 6, 9):
        log.line(Record("train", iteration, 8 * iteration, STATS))
        log.line(Record("valid", iteration, 8 * iteration, STATS))
    log.close()
    for iteration in (4, 6, 8, 10):
        (tmp_path / "checkpoints" / f"iter_{iteration:07d}").mkdir(parents=True)
    write_tracker(tmp_path / "checkpoints", 8)
    return tmp_path


def react(run: Path, watching: Watching, *spikes: Finding) -> Told:
    told = Told()
    publisher = Publisher([told])
    reaction = Reaction(watching, PLAN, str(run / "checkpoints"), run, publisher)
    moment = Moment(iteration=9, consumed_samples=72, log=True, scalars=False, microbatches=1)
    reaction((), moment)
    reaction([found(rule="nonfinite")], moment)
    with pytest.raises(SystemExit) as ended:
        reaction(spikes, moment)
    assert ended.value.code == EXIT_CODE == 75
    publisher.close()  # as at the end of the process
    assert told.closed == 1
    return told


def tracker(run: Path) -> str:
    return (run / "checkpoints" / TRACKER).read_text()


@pytest.mark.parametrize(
    ("onset", "mark", "resume", "samples"),
    [
        (6, 6, 6, (52, 80)),  # 48 and 72 consumed, with the cuts before them
        (8, 6, 6, (52, 80)),  # what was consumed after iteration 7 is not known
        (9, 6, 6, (52, 80)),  # where it was found
        (5, 3, None, (28, 80)),  # so the checkpoint of 4 would be too late
    ],
)
def test_back(
    onset: int, mark: int, resume: int | None, samples: tuple[int, int], run: Path
) -> None:
    told = react(run, Watching(on_spike="rollback"), found(onset=onset))
    (decision,) = read_decisions(run / "checkpoints")
    assert (decision.iteration, decision.onset, decision.resume) == (9, mark, resume)
    assert tracker(run) == ("8" if resume is None else str(resume))
    assert decision.samples == (None if resume is None else samples)
    assert told.events == [Event(decision.action, 9, str(decision))]
    journal = (run / "domain_journal.jsonl").read_text().splitlines()
    (line,) = [json.loads(one) for one in journal]
    assert (line["iteration"], line["consumed_samples"]) == (9, 72)
    assert Decision.model_validate(line["decision"]) == decision
    cut = leave_out(PLAN, [decision])
    assert cut is not None
    # All that was trained on up to the onset is as it was; what comes next is what came next.
    for consumed in range(8 * mark):
        assert cut.position(consumed) == PLAN.position(consumed)
    if resume is not None:
        assert cut.position(8 * mark) == PLAN.position(72)
        assert cut.position(8 * mark + 30) == PLAN.position(72 + 30)


def test_a_chain_of_rollbacks(run: Path) -> None:
    """The next one's cut joins the one before; after as many as are allowed, the run stops."""
    watching = Watching(on_spike="rollback", rollbacks=2)
    for _ in range(3):
        react(run, watching, found(onset=6))
    decisions = read_decisions(run / "checkpoints")
    assert [one.action for one in decisions] == ["rollback", "rollback", "stop"]
    assert decisions[-1].reason == "2 of at most 2 were made (watch.rollbacks)"
    assert leave_out(PLAN, decisions) == PLAN.without([(52, 80)])


def test_stop_leaves_the_tracker_alone(run: Path) -> None:
    told = react(run, Watching(on_spike="stop"), found(onset=6))
    assert tracker(run) == "8"
    assert [one.action for one in read_decisions(run / "checkpoints")] == ["stop"]
    assert told.events == [Event("stop", 9, "stopped at iteration 9: a jump")]


def test_killed_between_the_tracker_and_the_decision(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run comes back to the same jump, from the same checkpoint, and decides the same."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(rollback, "add_decision", killed)
        with pytest.raises(KeyboardInterrupt):
            react(run, Watching(on_spike="rollback"), found(onset=6))
    assert tracker(run) == "6"
    assert read_decisions(run / "checkpoints") == []
    react(run, Watching(on_spike="rollback"), found(onset=6))
    (decision,) = read_decisions(run / "checkpoints")
    assert (decision.resume, decision.samples, tracker(run)) == (6, (52, 80), "6")


def test_a_run_without_checkpoints_or_log(tmp_path: Path) -> None:
    """It ends all the same."""
    told = Told()
    moment = Moment(iteration=9, consumed_samples=72, log=True, scalars=False, microbatches=1)
    reaction = Reaction(Watching(on_spike="stop"), None, None, None, Publisher([told]))
    with pytest.raises(SystemExit):
        reaction([found()], moment)
    assert [event.name for event in told.events] == ["stop"]


def test_told_at_every_start_until_it_is_behind(capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    for iteration in (3, 5, 6):
        tell_rollbacks([BACK, STOP], iteration, Publisher([told]))
    assert told.events == [Event("rollback", at, str(BACK)) for at in (3, 5)]
    assert capsys.readouterr().out.count("rollback: from iteration 9 back to 5, and samples") == 3


def test_without_a_stream() -> None:
    """There is nothing to cut; and what was cut may not come back in silence."""
    flags = type("Flags", (), {"save": "run", "load": "run"})()
    check_rollback(Watching(on_spike="rollback"), flags, mixes=True)
    check_rollback(Watching(on_spike="stop"), flags, mixes=False)
    with pytest.raises(ConfigError, match=r"give the blend as one stage, as in mix: \{schedule"):
        check_rollback(Watching(on_spike="rollback"), flags, mixes=False)
    assert leave_out(None, [STOP]) is None
    with pytest.raises(ConfigError, match="give the config's mix as before"):
        leave_out(None, [STOP, BACK])


def test_what_acts_on_a_spike_needs_its_alarm(tmp_path: Path) -> None:
    path = tmp_path / "domains.yaml"
    path.write_text("watch: {on_spike: stop, alarms: {spike: false}}", "utf-8")
    with pytest.raises(ConfigError, match="on_spike: stop waits for the alarm spike, which alarms"):
        DomainConfig.load(path)
    path.write_text("watch: {on_spike: log, alarms: {spike: false}}", "utf-8")
    DomainConfig.load(path)
