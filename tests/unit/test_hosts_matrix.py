"""``make hosts`` up to the tests it starts: what it plans, what it reports, and its exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from domain_pretrain.__main__ import OLDEST_BUILT_IN
from domain_pretrain.hosts.versions import HOST_VERSIONS, VERSIONS, find, host_version

ROOT = Path(__file__).parents[2]

# The interpreter of a ready environment: it "runs" pytest, which leaves the report of $REPORT.
PYTHON = """#!/bin/sh
for word; do case $word in --junit-xml=*) cp "$REPORT" "${word#--junit-xml=}";; esac; done
grep -q -e "<failure" "$REPORT" && exit 1 || exit 0
"""
REPORT = """<?xml version="1.0"?>
<testsuites><testsuite name="pytest" time="61.4">
<properties><property name="host" value="0.19.1"/><property name="python" value="3.12.9"/>
<property name="torch" value="2.9.0"/><property name="seams" value="7 in 0.03 s"/></properties>
<testcase name="test_seams"/><testcase name="test_channel_loss[DP2]"/>
<testcase name="test_gradients[DP2]">GRADIENTS</testcase>
</testsuite></testsuites>
"""
FAILURE = "<failure message=\"AssertionError: (0, 'bias')&#10;more\"/>"


def checkout(folder: Path, version: str) -> Path:
    """As much of a checkout as is read before its tests run."""
    names = ("MAJOR", "MINOR", "PATCH")
    core = folder / "megatron" / "core"
    core.mkdir(parents=True)
    lines = [f"{name} = {part}" for name, part in zip(names, version.split("."), strict=True)]
    (core / "package_info.py").write_text("\n".join([*lines, "PRE_RELEASE = ''\n"]))
    return folder


@pytest.fixture
def command(tmp_path: Path) -> dict[str, str]:
    """The environment of ``test_hosts.sh``: Python 3.12 is there, and uv can make no other."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in {
        "python": PYTHON,
        "uv": "#!/bin/sh\necho 'error: no wheels' >&2; echo bye >&2; exit 2\n",
    }.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "CHECKOUTS": str(tmp_path / "checkouts"),
        "CACHE": str(tmp_path / "cache"),
        "MATRIX": str(tmp_path / "matrix.md"),
        "ENVIRONMENTS": f"3.12={tools / 'python'}",
        "REPORT": str(tmp_path / "report.xml"),
        "WHEELS": "",
    }


def run(command: dict[str, str], gradients: str = "") -> tuple[int, str]:
    Path(command["REPORT"]).write_text(REPORT.replace("GRADIENTS", gradients), encoding="utf-8")
    script = ROOT / "scripts" / "test_hosts.sh"
    done = subprocess.run([script], env=command, capture_output=True, text=True, timeout=600)
    matrix = Path(command["MATRIX"])
    return done.returncode, matrix.read_text(encoding="utf-8") if matrix.exists() else done.stderr


def test_all_passed(command: dict[str, str]) -> None:
    checkout(Path(command["CHECKOUTS"], "mine"), "0.19.1")
    code, page = run(command)
    assert code == 0
    assert "| checkout 0.19.1 | 3.12.9 | 2.9.0 | 7 in 0.03 s | 61 | not run | C G |" in page
    assert "**3 of 3 checks passed** on 1 hosts" in page
    assert "Not tested: 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.20" in page


def test_one_failed(command: dict[str, str]) -> None:
    checkout(Path(command["CHECKOUTS"], "mine"), "0.19.1")
    code, page = run(command, FAILURE)
    assert code == 1
    assert "| C ✗G |" in page
    assert "* checkout 0.19.1, DP2, gradients: `AssertionError: (0, 'bias')`" in page
    assert "**2 of 3 checks passed** on 1 hosts" in page


def test_no_environment(command: dict[str, str]) -> None:
    """Reported as such, never as passed; the others are still tested."""
    for name, version in (("new", "0.19.1"), ("old", "0.12.3")):
        checkout(Path(command["CHECKOUTS"], name), version)
    code, page = run(command)
    assert code == 1
    assert "* checkout old: nothing was run: error: no wheels" in page
    assert re.search(r"\| checkout old \| – \| – \| – \| – (\| not run ){6}\|", page)
    assert "| checkout 0.19.1 |" in page


def test_the_oldest_pytorch_is_tested_too(command: dict[str, str]) -> None:
    """A host of its own, in an environment of its own, with the oldest that the package admits."""
    checkout(Path(command["CHECKOUTS"], "old"), "0.12.3")
    ((row, oldest),) = [(row, row.oldest_torch) for row in VERSIONS if row.oldest_torch]
    name = f"{row.tested_python}-torch{oldest}"
    _, ready = command["ENVIRONMENTS"].split("=")
    code, page = run({**command, "ENVIRONMENTS": f"{name}={ready}"})
    plan = Path(command["CACHE"], "results", "plan").read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in plan] == ["old", f"old-torch{oldest}"]
    words = plan[1].split()
    assert words[1] == str(Path(command["CHECKOUTS"], "old"))
    assert words[2:] == [name, f"torch=={oldest}.*", *row.packages]
    assert code == 1, "there is no environment for the other"
    assert "* checkout old: nothing was run: error: no wheels" in page
    assert "| checkout 0.19.1 | 3.12.9 | 2.9.0 |" in page, "what the tests of this one said"


def test_the_oldest_pytorch_is_the_packages() -> None:
    (bound,) = re.findall(r'"torch>=([^"]*)"', (ROOT / "pyproject.toml").read_text())
    (row,) = [row for row in VERSIONS if row.oldest_torch]
    assert row.oldest_torch == bound
    assert Version(f"{bound}.99") not in Requirement(row.torch).specifier


@pytest.mark.parametrize("version", [None, "0.11.0"])
def test_nothing_to_run(version: str | None, command: dict[str, str]) -> None:
    folder = Path(command["CHECKOUTS"])
    folder.mkdir()
    if version:
        checkout(folder / "mine", version)
    code, message = run(command)
    assert code == 1
    assert ("0.11.0 is not in" if version else "no Megatron-LM checkout") in message


def test_the_table_is_in_order() -> None:
    series = [Version(row.series) for row in VERSIONS]
    assert series == sorted(series)
    for row in VERSIONS:
        assert all(find(Version(release)) is row for release in row.looked_up)
        assert all(Version(release) in HOST_VERSIONS for release in row.looked_up)
        assert next(Requirement(text).name for text in row.requirements) == "torch"
    assert find(Version("0.11.9")) is None
    assert Version("0.21.0") not in HOST_VERSIONS


def test_the_wheels_are_what_the_package_asks_for() -> None:
    """The first is the oldest of the built-in entry; the extra installs these and no other."""
    wheels = [row for row in VERSIONS if row.wheel]
    assert Version(wheels[0].series).release == OLDEST_BUILT_IN
    (extra,) = re.findall(
        r'"(megatron-core[^;"]*)', (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    )
    assert {
        row.series for row in VERSIONS if Version(f"{row.series}.0") in Requirement(extra).specifier
    } == {row.series for row in wheels}


def test_a_development_version(tmp_path: Path) -> None:
    info = checkout(tmp_path, "0.20.0") / "megatron" / "core" / "package_info.py"
    info.write_text(info.read_text().replace("''", "'rc0'"))
    assert host_version(tmp_path / "megatron") == Version("0.20.0rc0")
