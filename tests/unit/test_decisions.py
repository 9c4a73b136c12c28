"""What is done about a spike: pure decisions, the file of them, and what a rank writes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import write_checkpoint

from domain_pretrain.checkpoints.tracker import TRACKER, checkpoints_of
from domain_pretrain.config import DomainConfig
from domain_pretrain.data.mix.omit import Omission
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.order import Order
from domain_pretrain.errors import ConfigError, LogFolderError
from domain_pretrain.flow.moment import Moment
from domain_pretrain.hosts import rollback
from domain_pretrain.hosts.rollback import Reaction, check_rollback, leave_out, tell_rollbacks
from domain_pretrain.launch.checkpoints import Resume, find_resume
from domain_pretrain.records.events_file import EventsFile
from domain_pretrain.records.exporter import Exporter, Publisher
from domain_pretrain.records.journal import note_start
from domain_pretrain.records.metrics_file import MetricsFile
from domain_pretrain.records.reader import read_events
from domain_pretrain.records.record import Event, Finding, Record
from domain_pretrain.stats import Column, DomainStats
from domain_pretrain.watch.decision import (
    DECISIONS_FILE,
    EXIT_CODE,
    Back,
    Decision,
    add_decision,
    ahead,
    blocks_of,
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
    ("before", "back", "reason"),
    [
        ([], Back(5, (56, 80), {}), None),
        ([STOP, BACK, STOP], Back(5, (56, 80), {}), None),  # only ways back count
        ([BACK, BACK], Back(5, (56, 80), {}), "2 of at most 2 were made (watch.rollbacks)"),
        ([], "no checkpoint is left", "no checkpoint is left"),
    ],
)
def test_decisions(before: list[Decision], back: Back | str, reason: str | None) -> None:
    spike = found(onset=7)
    watching = Watching(on_spike="rollback", rollbacks=2)
    made = decide(spike, watching, before, onset=6, back=back)
    if reason is None:
        assert made == BACK
    else:
        assert made.action == "stop"
        assert made.samples is made.resume is None
        assert made.reason == reason
    made = decide(spike, Watching(on_spike="stop"), before, onset=6, back=back)
    assert (made.action, made.reason) == ("stop", "")


def test_the_file_of_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_decisions(tmp_path) == read_decisions(tmp_path / "none") == []
    add_decision(tmp_path, BACK)
    add_decision(tmp_path, STOP)
    decided = BACK.model_copy(update={"blocks": {3: (5, 11), 4: (16, 0)}, "samples": (56, 66)})
    add_decision(tmp_path, decided)
    assert read_decisions(tmp_path) == [BACK, STOP, decided]
    assert cuts_of([BACK, STOP]) == [(56, 80)]
    assert blocks_of([BACK, STOP, decided], 56) == {3: (5, 11), 4: (16, 0)}
    assert blocks_of([BACK, STOP, decided], 57) == {}  # of another plan
    assert ahead([BACK, STOP, decided], 56) == [(56, 80), (56, 66)]
    assert ahead([BACK, STOP, decided], 57) == []
    assert [path.name for path in tmp_path.iterdir()] == [DECISIONS_FILE]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LogFolderError, match=r"cannot write .*: No space left on device"):
        add_decision(tmp_path, BACK)
    assert read_decisions(tmp_path) == [BACK, STOP, decided]


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
        ({**WHOLE, "blocks": {"a": [5]}}, r"decisions\.0\.blocks\.a.*valid integer"),
        ({**WHOLE, "blocks": {"3": [-5]}}, r"decisions\.0\.blocks\.3\.0.*greater than or equal"),
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
    for iteration in (4, 6, 8):
        write_checkpoint(tmp_path / "checkpoints", f"iter_{iteration:07d}")
    (tmp_path / "checkpoints" / "iter_0000010").mkdir()
    start(tmp_path, 0, PLAN)
    return tmp_path


def start(run: Path, iteration: int, plan: Plan, **changed: Any) -> None:
    """In the journal."""
    given = [[[name, 1.0, 10, 10**6] for name in plan.prefixes], None, None]
    how = {"name": "t", "sha256": None}
    order = Order(given, [[0.0, 1.0], None, None], {}, how, plan.samples, plan.dump())
    note_start(run, iteration, 8 * iteration, {**order.dump(), **changed}, {})


def react(run: Path, watching: Watching, *spikes: Finding, plan: Plan = PLAN) -> Told:
    told = Told()
    publisher = Publisher([told])
    reaction = Reaction(watching, plan, str(run / "checkpoints"), run, publisher)
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
    (line,) = [one for one in map(json.loads, journal) if "decision" in one]
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


def test_a_torn_checkpoint_is_none(run: Path) -> None:
    """Of those up to the onset, the newest that is whole."""
    part = run / "checkpoints" / "iter_0000006" / "mp_rank_00" / "model_optim_rng.pt"
    part.write_bytes(part.read_bytes()[:-60])
    react(run, Watching(on_spike="rollback"), found(onset=6))
    assert (read_decisions(run / "checkpoints")[0].resume, tracker(run)) == (4, "4")


def test_what_a_rollback_gives_up_is_set_aside(run: Path) -> None:
    """Checkpoints that have read what is left out: no other rollback goes there, no launcher."""
    folder = run / "checkpoints"
    for number in (1, 2):
        react(run, Watching(on_spike="rollback"), found(onset=5 if number == 1 else 6))
        if number == 1:  # no line is of iteration 4 or 5, so the run stopped, and is as it was
            assert sorted(checkpoints_of(folder)) == [4, 6, 8, 10]
    assert sorted(checkpoints_of(folder)) == [4, 6]
    assert sorted(checkpoints_of(folder / "abandoned_1")) == [8, 10]
    write_checkpoint(folder, "iter_0000008")  # by the run that went back
    react(run, Watching(on_spike="rollback"), found(onset=6))
    assert sorted(checkpoints_of(folder / "abandoned_2")) == [8]
    assert find_resume(folder) == Resume(6)


OTHER = replace(PLAN, begin=52, taken=(52,))
OUT = replace(PLAN, omissions=(Omission((40,), ((3,),)),))


@pytest.mark.parametrize(
    ("since", "plan", "changed", "resume"),
    [
        (3, PLAN, {"samples": 300}, 6),  # longer: no sample is another
        (3, OTHER, {}, 6),
        (5, OTHER, {}, 6),
        (6, OTHER, {}, None),  # goes on from 6: whether it does so again is not known
        (7, OTHER, {}, None),
        (7, OUT, {}, None),
        (7, replace(PLAN, stages=(Stage(8, (1.0,)), *PLAN.stages)), {}, None),
        (7, PLAN, {"settings": {"--seed": 2}}, None),
    ],
)
def test_not_to_before_another_stream(
    since: int, plan: Plan, changed: dict[str, Any], resume: int | None, run: Path
) -> None:
    """What lies at a position would be another sample there."""
    start(run, since, plan, **changed)
    start(run, 8, plan, **changed)
    react(run, Watching(on_spike="rollback"), found(onset=6))
    (decision,) = read_decisions(run / "checkpoints")
    assert decision.resume == resume
    if resume is None:
        assert decision.reason == (
            f"no checkpoint is left of iteration 6 or before and after {since}, where the run "
            "began to mix its data as it does now"
        )


def test_without_a_journal(run: Path) -> None:
    (run / "domain_journal.jsonl").unlink()
    react(run, Watching(on_spike="rollback"), found(onset=6))
    (decision,) = read_decisions(run / "checkpoints")
    assert (decision.action, tracker(run)) == ("stop", "8")
    assert re.match(r"cannot read .*domain_journal\.jsonl", decision.reason)


def test_a_block_that_the_journal_does_not_tell(run: Path) -> None:
    plan = replace(PLAN, block=16)
    start(run, 0, plan)
    react(run, Watching(on_spike="rollback"), found(onset=6), plan=plan)
    (decision,) = read_decisions(run / "checkpoints")
    assert decision.reason == "the journal does not tell what was decided of block 3"


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
    assert told.events == 2 * [Event("rollback", 5, str(BACK))]
    assert capsys.readouterr().out.count("rollback: from iteration 9 back to 5, and samples") == 3


def test_told_once_in_the_files(tmp_path: Path) -> None:
    """However often the run starts from there; and again where it starts from before that."""
    for iteration in (5, 5, 3, 5, 6):
        log: list[Any] = [
            MetricsFile(tmp_path, "token", after_iteration=iteration, corpus_tokens={}),
            EventsFile(tmp_path, iteration),
        ]
        change = Event("change", 5, "another blend")
        tell_rollbacks([BACK, STOP], iteration, Publisher(log))
        for one in log:
            if iteration == 5:
                one.event(change)
            one.close()
    once = [Event("rollback", 5, str(BACK)), change]
    assert read_events(tmp_path) == once
    assert read_events(tmp_path / "domain_events.jsonl") == once


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
