"""The GPU day: every step is run and told whatever became of the others; the wheels suffice."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import written  # noqa: E402
from gpu_day import graph, needs, page, runner  # noqa: E402
from gpu_day import run as day  # noqa: E402
from gpu_day.steps import PIECE_LIMIT, PIECES, START, STEPS, Step, chosen  # noqa: E402
from support.pages import text  # noqa: E402

MACHINE = {"gpu": "A Card", "commit": "abc1234", "torch": "2.11", "python": "3.12", "date": "today"}


def step(name: str, code: str, limit: int = 600) -> Step:
    return Step(name, f"Why {name}?", "1", limit, shlex.join(["-c", code]).replace("{", "{{"))


def run_day(steps: tuple[Step, ...], folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of a day of these steps, on a machine with a GPU."""
    for module, name, value in (
        (day, "chosen", lambda names: steps),
        (page, "STEPS", steps),
        (day, "describe", lambda: MACHINE),
        (day, "note_signals", lambda ended: None),  # of pytest, as well
        (needs, "found", lambda name: True),
        (sys, "path", list(sys.path)),
        (sys, "argv", ["run.py", "--out", str(folder)]),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    return day.main()


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (
        step("tests", "print('a reason'); raise SystemExit(3)"),
        step("launches", "import time; time.sleep(3600)", limit=1),
        step("kernels", "print('no device'); raise SystemExit(77)"),
        step("demo", "print('fine')"),
    )
    assert run_day(steps, tmp_path, monkeypatch) == 1
    records = [page.read(runner.record_of(each, tmp_path)) for each in steps]
    assert [record["state"] for record in records] == ["failed", "timed out", "not run", "passed"]
    made = (tmp_path / page.NAME).read_text("utf-8")
    for said in (
        "* gpu: A Card",
        "| failed: exit code 3: a reason |",
        "| timed out: ended by its limit of 1 s |",
        "| not run: no device |",
        "| passed |",
    ):
        assert said in made


# A step that heeds no SIGTERM, and another beside it in a session of its own.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if sys.argv[1:]:
    print("ready", flush=True)
    time.sleep(3600)
words = [sys.executable, "-c", sys.orig_argv[2], "child"]
child = subprocess.Popen(words, stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print("ready", child.pid, flush=True)
time.sleep(3600)
"""
# A day of that step and another one; what it runs on is not asked.
DAY = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from gpu_day import needs, run, runner, steps
stubborn = ["-c", sys.argv.pop(1)]
run.describe = lambda: {"gpu": "A Card", "commit": "abc1234"}
needs.found = lambda name: True
runner.GRACE = 1.0
steps.Step.command = lambda step, out, work, **more: stubborn
sys.exit(run.main())
"""


def runs(process: int) -> bool:
    """Whether there is such a process, and it has not ended."""
    try:
        status = Path("/proc", str(process), "stat").read_text("utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def until(true: Callable[[], object]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_day_that_is_ended_leaves_a_page_and_no_process(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Through its script, however often it is told."""
    python = tmp_path / "python"
    code = [sys.executable, "-c", DAY, str(BENCHMARKS), STUBBORN]
    python.write_text(f'#!/bin/bash\nshift\nexec {shlex.join(code)} "$@"\n')
    python.chmod(0o755)
    started = subprocess.Popen(
        [ROOT / "scripts" / "gpu_day.sh", "--out", tmp_path, "--piece", "1"],
        env={**os.environ, "PYTHON": str(python), "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        # As a terminal would have it, also where pytest itself runs in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    log = tmp_path / "tests.log"
    until(lambda: (log.is_file() and "ready" in log.read_text("utf-8")) or started.poll())
    child = int(log.read_text("utf-8").split()[1])
    assert runs(child)
    while started.poll() is None:
        started.send_signal(number)
        time.sleep(0.05)
    said = started.communicate()[0]
    # The last one may have come as Python had given its handlers up.
    assert started.returncode in (128 + number, -number), said
    assert not runs(child)
    made = (tmp_path / page.NAME).read_text("utf-8")
    assert f"| cut off: by {number.name} |" in made
    assert made.count("| not begun |") == len(STEPS) - 1
    assert not list(tmp_path.glob("gpu_day-*")), "the wheels' folder"


def test_make_hands_its_signals_on() -> None:
    (recipe,) = re.findall("^gpu:\n\t(.*)$", text("Makefile"), re.M)
    assert recipe.startswith("@exec scripts/gpu_day.sh ")


def test_a_reader_that_is_gone_does_not_end_the_day(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*words: object, **more: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    day.say("tests: passed")


def test_nothing_of_an_older_run_is_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"phases": {}}')
    metrics = tmp_path / "work" / "demo" / "base" / "domain_metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.touch()
    runner.run(step("demo", "raise SystemExit(1)"), tmp_path)
    assert not (tmp_path / "demo.json").exists() and not metrics.exists()


def test_what_a_step_leaves_behind_is_ended(tmp_path: Path) -> None:
    child = "import subprocess as s; p = s.Popen(['sleep', '3600'], start_new_session=True)"
    assert runner.run(step("demo", f"{child}; print(p.pid)"), tmp_path)["state"] == "passed"
    assert not runs(int((tmp_path / "demo.log").read_text()))


class Clock:
    """Seconds that pass as they are slept through."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(0.01)


def test_a_step_is_over_by_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, log = Clock(), tmp_path / "log"
    monkeypatch.setattr(runner, "time", clock)
    assert runner.attempt(["-c", STUBBORN], log, 20) is None
    assert clock.now <= 20
    assert not log.read_text() or not runs(int(log.read_text().split()[1]))


def test_pieces_fit_their_time() -> None:
    """A limit holds also what does not heed it: test_a_step_is_over_by_its_limit."""
    for piece in PIECES:
        assert START + sum(each.limit for each in chosen([piece])) <= PIECE_LIMIT
    assert START + sum(each.limit for each in STEPS) < 25 * 60
    assert all(each.limit > runner.GRACE for each in STEPS)
    assert chosen([]) == list(STEPS)
    assert [each.name for each in chosen(["3", "demo"])] == [
        "demo",
        "profile",
        "graph",
        "sanitizer",
    ]
    assert page.BODIES.keys() == {each.name for each in STEPS}


@pytest.mark.parametrize("rehearse", [False, True])
@pytest.mark.parametrize("name", [each.name for each in STEPS])
def test_its_files_exist(name: str, rehearse: bool, tmp_path: Path) -> None:
    (found,) = chosen([name])
    words = found.command(tmp_path / "out.json", tmp_path, rehearse=rehearse)
    paths = [word for word in words if re.match(r"(benchmarks|tests)/", word)]
    assert paths and all((ROOT / path).exists() for path in paths)
    assert str(tmp_path / "out.json") in words


FIGURE = 271.828  # every measured number
DATA: dict[str, Any] = {
    "tests": {"tests": {"t.py::a": {"outcome": "failed", "why": "unequal"}}},
    "launches": {"rows": [{"what": "the host alone", "names": ["mul", "sum"]}]},
    "kernels": {
        "rows": [
            {
                **{"b": 1, "s": 4096, "D": 8, "ids": "row"},
                **{"cuda": FIGURE, "copy": FIGURE},
                **{"cuda, with launch": FIGURE, "cuda, graph": FIGURE, "copy, graph": FIGURE},
                "cuda, between matmuls": FIGURE,
            }
        ],
        "bandwidth": {"copy_bytes_per_s": 1e12 * FIGURE, "row ids, share of copy": FIGURE},
    },
    "demo": {"phases": {"base": {"iteration": 12, "domains": {"general": [FIGURE, FIGURE]}}}},
    "step-time": {
        "flags": "--bf16",
        "wall": {
            "pairs": 60,
            "ratio_median": FIGURE,
            "ratio_interval_95": [FIGURE, FIGURE],
            "step_ms_with": FIGURE,
            "step_ms_without": FIGURE,
        },
        "host_syncs": {"with": FIGURE, "without": 0},
    },
    "profile": {
        "counted": "kernels",
        "with": {"launches": FIGURE, "device_us": 1e3 * FIGURE, "waits": FIGURE},
        "more_with": {"reduce": 271},
    },
    "graph": {
        "iterations": 20,
        "tokens_equal": True,
        "largest_difference_nats": FIGURE,
        "tolerance_nats": 0.01,
    },
}
DATA |= {"step-time-reweight": DATA["step-time"], "sanitizer": DATA["tests"]}


def record(folder: Path, name: str, **more: Any) -> None:
    made = {"state": "passed", "command": "python x.py", "rehearsal": False, **MACHINE, **more}
    (folder / f"{name}.run.json").write_text(json.dumps(made))


@pytest.mark.parametrize("rehearsal", [False, True])
def test_the_page_shows_figures_only_of_a_gpu(rehearsal: bool, tmp_path: Path) -> None:
    for name, data in DATA.items():
        record(tmp_path, name, rehearsal=rehearsal, seconds=FIGURE)
        (tmp_path / f"{name}.json").write_text(json.dumps(data))
    made = page.render(tmp_path)
    assert "is not what this page reads" not in made
    assert ("27" in made or "2.7" in made) != rehearsal
    assert ("There was no GPU" in made) == rehearsal
    assert ("A Card" in made) != rehearsal
    assert "| 1 | 4096 | 8 | row |" in made
    assert "`mul`, `sum`" in made


def test_the_page_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    record(tmp_path, "kernels", state="running")
    (tmp_path / "kernels.json").write_text(json.dumps({"rows": DATA["kernels"]["rows"]}))
    record(tmp_path, "demo", state="timed out", reason="too long", tail=["step 7", "step 8"])
    (tmp_path / "demo.json").write_text('{"phases": {"base"')
    record(tmp_path, "profile")
    (tmp_path / "profile.json").write_text('{"counted": "kernels"}')
    record(tmp_path, "step-time")
    (tmp_path / "step-time.json").write_text("[]")
    made = page.render(tmp_path)
    for said in (
        "**cut off: it began",
        "| 1 | 4096 | 8 | row | 271.8 |",
        "**timed out: too long**",
        "step 7\nstep 8",
        "step-time.json is not what this page reads",
        "**not begun**",
    ):
        assert said in made


def test_numbers_that_cannot_be_shown_hide_no_others(tmp_path: Path) -> None:
    record(tmp_path, "kernels")
    rows = [{**row, "cuda": 0.0} for row in DATA["kernels"]["rows"]]
    (tmp_path / "kernels.json").write_text(json.dumps({"rows": rows}))
    record(tmp_path, "graph")
    (tmp_path / "graph.json").write_text(json.dumps(DATA["graph"]))
    made = page.render(tmp_path)
    assert "kernels.json is not what this page reads: ZeroDivisionError" in made
    assert "Tokens of 20 steps equal: yes" in made


@pytest.mark.parametrize(
    ("body", "code", "outcome"),
    [("pytest.skip('no card')", 77, "skipped"), ("pass", 0, "passed"), ("assert 0", 1, "failed")],
)
def test_outcomes_of_tests(body: str, code: int, outcome: str, tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(f"import pytest\ndef test_it():\n    {body}\n")
    words = shlex.split("-m pytest -q -p no:cacheprovider -p gpu_day.outcomes --outcomes out.json")
    done = subprocess.run(
        [sys.executable, *words, "test_it.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    (test,) = json.loads((tmp_path / "out.json").read_text())["tests"].values()
    assert test["outcome"] == outcome
    if code == 77:
        assert done.stdout.splitlines()[-1] == "no card"


def test_the_graphs_sums_are_compared() -> None:
    eager = {"5": {"a": [2.0, 10.0]}}
    assert graph.compare(eager, eager) == {"tokens_equal": True, "largest_difference_nats": 0.0}
    other = {"5": {"a": [None, 11.0]}}
    assert graph.compare(eager, other) == {
        "tokens_equal": False,
        "largest_difference_nats": float("inf"),
    }
    assert not graph.compare({}, {})["tokens_equal"]


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a file of each kind."""
    for name in ("src/a.py", "benchmarks/a/results/a.json", "docs/a.md", "copy/src/a.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    for words in (["init"], ["add", "."], ["commit", "-m", "all"]):
        git(tmp_path, *words)
    return tmp_path


def test_the_commit_of_a_copy_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it lies in another repository."""
    monkeypatch.setattr(written, "ROOT", checkout / "copy")
    monkeypatch.setenv("COMMIT", "abc1234")
    assert written.commit() == "abc1234"
    monkeypatch.delenv("COMMIT")
    assert written.commit() == "unknown"


def test_the_commit_of_a_checkout_with_changes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(written, "ROOT", checkout)
    clean = written.commit()
    assert re.fullmatch("[0-9a-f]{7,}", clean)
    for name in ("benchmarks/a/results/a.json", "docs/a.md"):  # not what is measured
        (checkout / name).write_text("changed")
    assert written.commit() == clean
    (checkout / "src" / "a.py").write_text("changed")
    assert written.commit() == f"{clean} and uncommitted changes"


@pytest.mark.parametrize(
    ("machine", "said"), [({"gpu": ""}, "--rehearse"), ({"commit": "unknown"}, "COMMIT=hash")]
)
def test_it_says_what_it_cannot_do(
    machine: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(day, "describe", lambda: {**MACHINE, **machine})
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path)])
    assert day.main() == 2
    assert said in capsys.readouterr().err


def test_results_need_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for out in (file, file / "folder"):
        assert run_day((), out, monkeypatch) == 2
        assert f"--out {out}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"), [([], "arguments are required: folder"), (["nowhere"], "nowhere: no step")]
)
def test_a_page_needs_results(words: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu_day" / "page.py", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and said in done.stderr
    record(tmp_path, "demo")
    made = [sys.executable, BENCHMARKS / "gpu_day" / "page.py", tmp_path]
    subprocess.run(made, check=True)
    assert "| passed |" in (tmp_path / page.NAME).read_text("utf-8")


def test_a_rehearsal_is_not_mixed_with_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, "demo", rehearsal=True)
    steps = (step("demo", ""),)
    assert run_day(steps, tmp_path, monkeypatch) == 2
    assert "name another" in capsys.readouterr().err
    record(tmp_path, "demo", rehearsal=False)
    assert run_day(steps, tmp_path, monkeypatch) == 0


PINS = {
    requirement.name: requirement
    for line in (BENCHMARKS / "gpu_day" / "wheels.txt").read_text().splitlines()
    if not line.startswith("#")
    for requirement in [Requirement(line)]
}
# Run with what an installed distribution brings hidden, unless a GPU machine has it.
IMPORT = """
import sys
from importlib.abc import MetaPathFinder

class Hide(MetaPathFinder):
    # As if they were not there: PyTorch also asks for what it does not import.
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden and path is None:
            path = [folder for folder in sys.path if "_vendor" in folder]  # setuptools' own copies
        return self.finder.find_spec(name, path, target)

hidden = set(sys.argv[1].split(","))
sys.meta_path = list(map(Hide, sys.meta_path))
sys.path[:0] = ["src", "tests", "benchmarks", "benchmarks/step_time"]
from domain_pretrain import enable
enable()
import megatron.training.training
import domain_pretrain.commands.demo, domain_pretrain.hosts.gpt.entry
import gpu_day.demo, gpu_day.graph, gpu_day.launch_counts, gpu_day.outcomes, profile_steps
import megatron.core.datasets.indexed_dataset, megatron.core.dist_checkpointing
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def modules() -> dict[str, set[str]]:
    """Top-level module → distributions; in a new process, where setuptools' own copies are not."""
    code = "import json, importlib.metadata as m; print(json.dumps(m.packages_distributions()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return {name: set(map(normal, of)) for name, of in json.loads(done.stdout).items()}


def with_needs(names: set[str]) -> set[str]:
    """Distributions of these names, and all that they depend on, as far as it is installed."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = normal(todo.pop())
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            parsed = map(Requirement, requires)
            todo += [r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


def test_machine_and_wheels_hold_what_is_imported() -> None:
    """As on a machine that has nothing else, with the wheels installed without what they need."""
    pytest.importorskip("megatron.training")
    machine = {of for name in needs.MACHINE for of in modules().get(name.split(".")[0], set())}
    has = with_needs(machine) | PINS.keys()
    hidden = {name for name, of in modules().items() if not of & has} - {"domain_pretrain"}
    assert "mypy" in hidden and "torch" not in hidden

    def imports(names: set[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", IMPORT, ",".join(names)]
        env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)

    done = imports(hidden)
    assert done.returncode == 0, done.stderr
    assert "No module named 'pydantic_core'" in imports(hidden | {"pydantic_core"}).stderr


def test_the_wheels_are_those_that_are_asked_for() -> None:
    """And fit together, where the installed ones are the same."""
    for name in needs.WHEELS:
        # Of a name that several distributions share, megatron, one is enough.
        found = modules().get(name.partition(".")[0], set())
        assert not found or found & PINS.keys()
    assert len({name.partition(".")[0] for name in needs.WHEELS}) == len(PINS)
    for name, pin in PINS.items():
        try:
            same = pin.specifier.contains(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
        for need in map(Requirement, metadata.requires(name) or [] if same else []):
            if need.name in PINS and need.marker is None:
                (version,) = PINS[need.name].specifier
                assert need.specifier.contains(version.version), f"{name} needs {need}"


def test_a_machine_without_them_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lacks(*names: str) -> str:
        code = run_day((), tmp_path, monkeypatch)
        assert code == 0
        monkeypatch.setattr(needs, "found", lambda name: name not in names)
        code = day.main()
        said = capsys.readouterr()
        assert code == (2 if said.err else 0)
        return said.err or said.out

    monkeypatch.setattr(sys, "version_info", (3, 12, 3))
    said = lacks("pydantic")
    assert "lacks pydantic:" in said and "scripts/gpu_wheels.sh DIR" in said
    assert "lacks matplotlib: steps that need it will fail" in lacks("matplotlib")
    assert "lacks torch: name a Python" in lacks("torch", "pydantic")
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert "Python 3.12, this is 3.10" in lacks("pydantic")


def script(name: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "scripts" / name, *words],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )


def test_usage(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for name, words, said in (
        ("gpu_wheels.sh", [], "usage:"),
        ("gpu_wheels.sh", ["--help"], "usage:"),
        ("gpu_wheels.sh", [str(file)], "is a file"),
        ("gpu_day.sh", ["--wheels"], "--wheels: expected one argument"),
        ("gpu_day.sh", ["--wheels", "--rehearse"], "--wheels: expected one argument"),
        ("gpu_day.sh", ["--wheels", str(tmp_path)], "no wheel there"),
        ("gpu_day.sh", [f"--wheels={tmp_path}"], "no wheel there"),
    ):
        done = script(name, *words, PYTHON="false" if "wheels" in name else sys.executable)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr


@pytest.mark.parametrize("words", [["--piece", "4"], ["--pieces", "1"], ["more"]])
def test_wrong_words(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *words])
    with pytest.raises(SystemExit, match="2"):
        day.main()
    assert "usage: scripts/gpu_day.sh" in capsys.readouterr().err


def fetch(wheels: Path, *names: str) -> str:
    """What scripts/gpu_wheels.sh asks of a pip that fetches files of these names."""
    python = wheels.with_name("python")
    touch = "".join(f'touch "${{@: -4:1}}/{name}"\n' for name in names)
    python.write_text(f'#!/bin/bash\necho "$*"\n{touch}')
    python.chmod(0o755)
    done = script("gpu_wheels.sh", str(wheels), "psutil", PYTHON=str(python))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_more_than_the_wheels_is_fetched_and_one_version_of_each(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    asked = fetch(wheels, "a_b-1-py3-none-any.whl", "a-1-py3-none-any.whl")
    for words in (
        "pip download",
        "--no-deps",
        "--python-version 3.12",
        "gpu_day/wheels.txt psutil",
    ):
        assert words in asked
    (wheels / "mine-1-py3-none-any.whl").touch()
    fetch(wheels, "a-2-py3-none-any.whl")
    assert sorted(path.name for path in wheels.iterdir()) == [
        "a-2-py3-none-any.whl",
        "a_b-1-py3-none-any.whl",
        "mine-1-py3-none-any.whl",
    ]


def test_the_wheels_are_installed_for_the_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the image's pip is told by its environment; and no wheel, no day."""
    wheel = tmp_path / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("thing.py", "print('imported')")
        file.writestr(
            "thing-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1"
        )
        file.writestr("thing-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        file.writestr("thing-1.dist-info/RECORD", "")
    constraint = tmp_path / "constraint.txt"
    constraint.write_text("thing==2")
    monkeypatch.setenv("PIP_CONSTRAINT", str(constraint))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out = tmp_path / "out"

    def main() -> int:
        run_day((), out, monkeypatch)
        monkeypatch.setattr(day, "chosen", lambda names: (step("demo", "import thing"),))
        monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(out), f"--wheels={tmp_path}"])
        return day.main()

    assert main() == 0, (out / "wheels.log").read_text("utf-8")
    assert (out / "demo.log").read_text("utf-8") == "imported\n"
    assert not list(tmp_path.glob("gpu_day-*")), "it goes at the end"
    wheel.write_text("no wheel")
    assert main() == 2
    assert f"cannot install what is in {tmp_path}: ERROR" in capsys.readouterr().err


def test_the_page_about_it_names_every_step() -> None:
    shown = text("docs/kernels.md")
    for each in STEPS:
        assert re.search(
            rf"^\| {each.piece} \| `{each.name}` \| .* \| {each.limit} \|$", shown, re.M
        )
