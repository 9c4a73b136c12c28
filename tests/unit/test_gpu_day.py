"""The GPU day: every step is run and told whatever became of the others; the wheels suffice."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
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
from gpu_day.steps import PIECE_LIMIT, PIECES, STEPS, Step, chosen  # noqa: E402
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
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(folder)])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    before = signal.getsignal(signal.SIGTERM)
    try:
        return day.main()
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_step_that_fails_or_takes_too_long_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (
        step("tests", "print('a reason'); raise SystemExit(3)"),
        step("launches", "import time; print('so far', flush=True); time.sleep(3600)", limit=1),
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
        "| timed out: ended after its limit of 1 s |",
        "| not run: no device |",
        "| passed |",
    ):
        assert said in made


def test_a_day_that_is_ended_ends_its_step_and_makes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(3600)"
    with pytest.raises(SystemExit, match="143"):
        run_day((step("demo", kill), step("graph", "")), tmp_path, monkeypatch)
    made = (tmp_path / page.NAME).read_text("utf-8")
    assert "| cut off: it began" in made and "| not run: it was not asked for |" in made


def test_nothing_of_an_older_run_is_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"phases": {}}')
    runner.run(step("demo", "raise SystemExit(1)"), tmp_path)
    assert not (tmp_path / "demo.json").exists()


def test_what_a_step_leaves_behind_is_ended(tmp_path: Path) -> None:
    child = "import subprocess as s; print(s.Popen(['sleep', '3600']).pid)"
    assert runner.run(step("demo", child), tmp_path)["state"] == "passed"
    status = Path("/proc", (tmp_path / "demo.log").read_text().strip(), "stat")
    assert not status.exists() or status.read_text("utf-8").rpartition(")")[2].split()[0] == "Z"


def test_pieces_fit_their_time() -> None:
    for piece in PIECES:
        assert sum(each.limit for each in chosen([piece])) <= PIECE_LIMIT
    assert sum(each.limit for each in STEPS) <= 25 * 60
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
        "**not run: it was not asked for**",
    ):
        assert said in made


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
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 12, 3))
    monkeypatch.setattr(needs, "found", lambda name: name != "pydantic")
    assert needs.main() == 2
    said = capsys.readouterr().err
    assert "lacks pydantic:" in said and "scripts/gpu_wheels.sh DIR" in said
    monkeypatch.setattr(needs, "found", lambda name: name != "matplotlib")
    assert needs.main() == 0
    assert "lacks matplotlib" in capsys.readouterr().out
    monkeypatch.setattr(needs, "found", lambda name: False)
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert needs.main() == 2
    assert "Python 3.12, this is 3.10" in capsys.readouterr().err


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
        ("gpu_day.sh", ["--wheels"], "name the folder"),
        ("gpu_day.sh", ["--wheels", "--rehearse"], "name the folder"),
        ("gpu_day.sh", ["--wheels", str(tmp_path)], "no wheel there"),
        ("gpu_day.sh", [f"--wheels={tmp_path}"], "no wheel there"),
    ):
        done = script(name, *words, PYTHON="false")
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


def test_the_scripts_ask_pip_for_no_more_than_the_wheels(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\necho "$PYTHONPATH: $*"\n')
    python.chmod(0o755)
    variables = {"PYTHON": str(python), "PYTHONPATH": "mine"}
    fetched = script("gpu_wheels.sh", str(tmp_path / "wheels"), "psutil", **variables).stdout
    for words in (
        "pip download",
        "--no-deps",
        "--python-version 3.12",
        "gpu_day/wheels.txt psutil",
    ):
        assert words in fetched
    (tmp_path / "wheels" / "a.whl").touch()
    given = ["--wheels", str(tmp_path / "wheels"), "--piece", "demo"]
    install, look, run = script("gpu_day.sh", *given, **variables).stdout.splitlines()
    assert "--no-index --no-deps" in install and install.endswith("a.whl")
    target = re.search(r"--target (\S+)", install)
    assert target and not Path(target[1]).exists(), "it goes at the end"
    assert look.startswith(f"{target[1]}:mine: ") and look.endswith("needs.py")
    assert run.startswith(f"{target[1]}:mine: ") and run.endswith(" ".join(given))


def test_the_page_about_it_names_every_step() -> None:
    shown = text("docs/kernels.md")
    for each in STEPS:
        assert re.search(
            rf"^\| {each.piece} \| `{each.name}` \| .* \| {each.limit} \|$", shown, re.M
        )
