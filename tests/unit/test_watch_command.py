"""``domain-pretrain watch``: a run's files as they grow, and the frames that it shows."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from domain_pretrain.commands import watch
from domain_pretrain.commands.main import main
from domain_pretrain.records.metrics_file import header
from domain_pretrain.records.reader import EVENTS_FILE, METRICS_FILE, MetricsTail
from domain_pretrain.records.record import Event
from domain_pretrain.records.tail import Tail
from domain_pretrain.records.writer import LinesFile
from domain_pretrain.report.frame import BARS, duration, frame, sparkline
from domain_pretrain.report.live import WINDOWS, Follower, LiveRun


def window(iteration: int, seconds: float | None = 2.0, **domains: Any) -> dict[str, Any]:
    """A training line; each domain is its loss, or a mapping of more. 1,000 tokens each."""
    host = {"learning_rate": 1e-3, "grad_norm": 0.5}
    if seconds is not None:
        host["seconds"] = seconds
    return {
        "iteration": iteration,
        "split": "train",
        "lm_loss": 2.0,
        "domains": {
            name: {
                "loss_sum": 0.0,
                "tokens": 1000,
                **(given if isinstance(given, dict) else {"loss": given}),
            }
            for name, given in domains.items()
        },
        "host": host,
    }


def start(*names: str, iteration: int = 0, train_iters: int | None = 100) -> dict[str, Any]:
    event = Event("resume" if iteration else "start", iteration)
    return header(event, names, {names[0]: 10_000}, train_iters)


def finding(iteration: int, domain: str | None, **more: Any) -> dict[str, Any]:
    told = {"finding": "spike", "severity": "warning", "message": f"{domain} jumped"}
    return {**told, "domain": domain, "iteration": iteration, "cause": "data", **more}


def encode(*entries: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def live(*entries: dict[str, Any], findings: tuple[dict[str, Any], ...] = ()) -> LiveRun:
    run = LiveRun()
    for line in encode(*entries).splitlines(keepends=True):
        run.add(line)
    for line in encode(*findings).splitlines(keepends=True):
        run.add_finding(line)
    return run


def shown(run: LiveRun, height: int = 40, width: int = 160, **given: Any) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, highlight=False, markup=False)
    console.print(frame(run, height=height, **given))
    return console.file.getvalue()  # type: ignore[attr-defined]


def row(text: str, name: str) -> list[str]:
    """The cells of a domain's row."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in line.strip("│").split("│")]


# --- following --------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 400), max_size=12))
@settings(max_examples=60)
def test_whatever_is_torn_when_each_line_comes_once(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    """The file is looked at after any bytes of it: what comes is its whole lines, in order."""
    whole = encode(start("a"), *(window(i, a=float(i)) for i in range(1, 5)))
    path = tmp_path_factory.mktemp("run") / METRICS_FILE
    tail, seen, size = Tail(path), [], 0
    for added in [*sizes, len(whole)]:
        with path.open("ab") as file:
            file.write(whole[size : size + added])
        size = min(len(whole), size + added)
        assert not tail.replaced()
        seen += tail.lines()
        assert b"".join(seen) == whole[: whole.rfind(b"\n", 0, size) + 1]
    assert b"".join(seen) == whole
    tail.close()


@given(st.data())
@settings(max_examples=60)
def test_a_resume_shows_what_the_file_then_holds(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whenever one looked: after each resume, which cuts lines, the state is that of the file."""
    folder = tmp_path_factory.mktemp("run")
    path = folder / METRICS_FILE
    follower, at = Follower(folder), 0
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, at))
        lines = LinesFile.open(path, at)
        lines.append(start("a", "b", iteration=at))
        for _ in range(data.draw(st.integers(0, 5))):
            at += 1
            lines.append(window(at, a=float(at), b=1.0))
            if data.draw(st.booleans()):
                follower.read()
        lines.close()
    follower.read()
    fresh = LiveRun()
    for line in path.read_bytes().splitlines(keepends=True):
        fresh.add(line)
    assert follower.run is not None
    assert shown(follower.run) == shown(fresh)
    assert follower.run.rows == fresh.rows
    assert not follower.read(), "nothing new"
    follower.close()


def test_a_file_that_is_cut_or_removed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    follower = Follower(tmp_path)
    assert not follower.read() and follower.run is None
    path.write_bytes(encode(start("a"), window(1, a=1.0), window(2, a=2.0)))
    assert follower.read() and follower.run is not None and follower.run.iteration == 2
    os.truncate(path, len(encode(start("a"), window(1, a=1.0))))
    assert follower.read() and follower.run is not None and follower.run.iteration == 1
    path.unlink()
    assert follower.read() and follower.run is None, "waits for another one"
    path.write_bytes(encode(start("b"), window(7, b=1.0)))
    assert follower.read() and follower.run is not None and list(follower.run.rows) == ["b"]
    follower.close()


def test_the_demo_follows_a_resumed_file_too(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    tail = MetricsTail(tmp_path)
    path.write_bytes(encode(start("a"), window(1, a=1.0), window(2, a=2.0)))
    assert [entry["iteration"] for entry in tail.read()] == [1, 2]
    LinesFile.open(path, 1).close()
    assert [entry["iteration"] for entry in tail.read()] == [1]


def test_findings_come_from_the_other_file(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_bytes(encode(start("a"), window(1, a=1.0)))
    told = finding(1, "a")
    event = {"event": "rollback", "iteration": 1, "detail": ""}  # which is in both files
    more = {**told, "documents": [{"document": 3}]}
    (tmp_path / EVENTS_FILE).write_bytes(encode(event, told, more) + b'{"finding": "torn')
    follower = Follower(tmp_path)
    follower.read()
    assert follower.run is not None
    assert [alarm.rule for alarm in follower.run.alarms] == ["spike"], "once"
    assert follower.run.unreadable == 0
    follower.close()


# --- what is known ----------------------------------------------------------------------------


def test_the_time_left_is_told_by_the_last_windows() -> None:
    """Ten iterations in 2 s, 70 to go; evaluations are in the seconds, a process's start not."""
    entries = [window(10, None, a=1.0), window(20, a=1.0), window(30, a=1.0)]
    run = live(start("a"), *entries)
    assert run.seconds_left == pytest.approx(14)
    assert run.tokens_per_second == pytest.approx(500)
    assert "iteration 30 of 100 (30%)" in shown(run) and "14 s left" in shown(run)
    assert live(start("a", train_iters=None), *entries).seconds_left is None
    assert live(start("a"), *entries[:2]).seconds_left is None
    resumed = live(start("a"), *entries, start("a", iteration=30), window(40, None, a=1.0))
    assert resumed.seconds_left is None, "perhaps on other devices"
    done = shown(live(start("a"), *entries, window(100, a=1.0)))
    assert "done" in done and "left" not in done


def test_a_row_says_what_is_known_of_a_domain() -> None:
    full = {"loss": 2.5, "weight": 1.24, "mix": 0.25, "consumed_tokens": 5000, "tokens": 3000}
    valid = {**window(2, a=2.25), "split": "valid"}
    run = live(start("a", "b", "never"), window(1, a=full, b=1.0), window(2, a=full), valid)
    text = shown(run)
    bar = BARS[0] * 2
    assert row(text, "a") == [
        "a",
        "2.500",
        bar,
        "2.250",
        "100.0%",
        "1.24",
        "25.0%",
        "5,000",
        "0.50",
    ]
    assert row(text, "b")[:5] == ["b", "1.000", BARS[0], "–", "–"], "not in the last window"
    assert row(text, "never")[1] == "–"


def test_columns_without_content_are_left_out() -> None:
    text = shown(live(window(1, a=1.0)))
    assert row(text, "a") == ["a", "1.000", BARS[0], "100.0%"]
    for title in ("valid", "plier", "stream", "so far", "epochs", "alarms"):
        assert title not in text


def test_alarms_are_told_in_the_row_and_below() -> None:
    found = (finding(2, "a"), finding(2, "a", finding="dirty"), finding(1, None, message="all up"))
    text = shown(live(start("a", "b"), window(2, a=1.0, b=1.0), findings=found))
    assert row(text, "a")[-1] == "spike, dirty" and row(text, "b")[-1] == ""
    assert "iteration 2: warning: a jumped (data)" in text
    assert "iteration 1: warning: all up (data)" in text
    later = [window(2 + step, a=1.0, b=1.0) for step in range(1, WINDOWS + 1)]
    text = shown(live(start("a", "b"), *later, findings=found))
    assert "alarms" not in text, "of windows long gone"
    assert "a jumped" in text


def test_a_resume_at_the_same_place_again_is_told_once() -> None:
    run = live(start("code", iteration=0), window(1, code=2.0), *[start("code", iteration=1)] * 3)
    assert shown(run).count("after iteration 1: resumed") == 1


def test_a_loss_that_is_not_finite_is_seen() -> None:
    run = live(start("a"), window(1, a=1.0), window(2, a={"loss": None}), window(3, a=2.0))
    assert row(shown(run), "a")[1:3] == ["2.000", f"{BARS[0]}×{BARS[-1]}"]
    run.add(encode(window(4, a={"loss": None})))
    assert row(shown(run), "a")[1] == "NaN"


def test_of_many_domains_the_worst_fit() -> None:
    names = [f"d{i:03}" for i in range(1000)]
    losses: dict[str, Any] = {name: i / 1000 for i, name in enumerate(names)}
    losses["d001"] = {"loss": None}
    run = live(start(*names), window(1, **losses), findings=(finding(1, "d002"),))
    text = shown(run, height=24)
    assert len(text.splitlines()) <= 24
    listed = [line.split()[1] for line in text.splitlines() if line.startswith("│ d")]
    assert listed[:4] == ["d002", "d001", "d999", "d998"]
    assert f"… {1000 - len(listed)} more" in text and len(listed) > 10
    assert len(shown(run, height=1).splitlines()) < 14


def test_lines_that_are_none_of_ours_are_counted() -> None:
    run = live(start("a"), window(1, a=1.0))
    for line in (b"torn\n", b"\n", b'{"iteration": -1}\n', b"\xff\n"):
        run.add(line)
        run.add_finding(line)
    run.add_finding(b'{"finding": "x"}\n')
    run.add_finding(b"[1]\n")
    assert "lines left out that cannot be read" in shown(run)
    assert run.iteration == 1


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=40))
def test_a_sparkline_has_a_bar_for_each_value(values: list[float]) -> None:
    assert len(sparkline(values)) == len(values)
    assert set(sparkline(values)) <= {*BARS, "×"}


def test_durations_are_for_people() -> None:
    seconds = (-1, 42.4, 65, 3600 + 59, 12_000, 187_200)
    assert [duration(one) for one in seconds] == [
        *("0 s", "42 s", "1 min 5 s", "1 h 0 min", "3 h 20 min", "2 d 4 h"),
    ]


# --- the command ------------------------------------------------------------------------------


def test_once_prints_a_frame_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / METRICS_FILE).write_bytes(encode(start("a"), window(1, a=1.5)) + b'{"iterat')
    assert main(["watch", str(tmp_path), "--once"]) == 0
    printed = capsys.readouterr().out
    assert main(["watch", str(tmp_path / METRICS_FILE), "--once"]) == 0
    assert capsys.readouterr().out == printed
    assert row(printed, "a")[1] == "1.500"
    assert "\x1b" not in printed and "ago" not in printed, "plain, where it is no terminal"


def test_once_without_a_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path / "none"), "--once"]) == 2
    assert "--domain-log-dir" in capsys.readouterr().err


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Instead of sleeping, do one thing after another; then the user presses Ctrl-C."""

    def of(*actions: Callable[[], object]) -> None:
        left = list(actions)

        def sleep(seconds: float) -> None:
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr(watch.time, "sleep", sleep)

    return of


def test_into_a_pipe_goes_a_frame_for_each_new_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], naps: Callable[..., None]
) -> None:
    path = tmp_path / "later" / METRICS_FILE

    def begin() -> None:
        path.parent.mkdir()
        path.write_bytes(encode(start("a"), window(1, a=1.5)))

    def append() -> None:
        with path.open("ab") as file:
            file.write(encode(window(2, a=1.25)))

    naps(begin, lambda: None, append)
    assert main(["watch", str(path.parent)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("waiting for ")
    assert [line.split()[1] for line in printed.splitlines() if line.startswith("iter")] == [
        "1",
        "2",
    ]


def test_on_a_terminal_the_last_frame_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, naps: Callable[..., None]
) -> None:
    (tmp_path / METRICS_FILE).write_bytes(encode(start("a"), window(1, a=1.5)))
    out = io.StringIO()
    screen = Console(file=out, force_terminal=True, width=90)
    monkeypatch.setattr(watch, "plain_console", lambda: screen)
    naps(lambda: None)
    assert main(["watch", str(tmp_path)]) == 0
    written = out.getvalue()
    screen, _, after = written.rpartition("\x1b[?1049l")  # back from the other screen
    assert screen.startswith("\x1b[?1049h") and "1.500" in screen
    assert "iteration 1 of 100" in after and "ago" in after
