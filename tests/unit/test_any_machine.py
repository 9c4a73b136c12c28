"""The rules of tests/conftest.py hold: a verdict is the same on a slow, busy or narrow machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from hypothesis import settings

TESTS = Path(__file__).parents[1]
FAILING = """
from hypothesis import given, strategies as st

@given(st.integers(0, 10**9))
def test_it(number):
    assert number % 7 != 3
"""


def test_no_test_sets_a_deadline_of_its_own() -> None:
    assert settings().deadline is None
    own = [
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        if path != TESTS / "conftest.py" and re.search(r"\bdeadline[=]", path.read_text("utf-8"))
    ]
    assert not own, "the profile of tests/conftest.py sets it for all"


def test_a_failure_tells_how_to_see_it_again(tmp_path: Path) -> None:
    shutil.copy(TESTS / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(FAILING)

    def fail(*arguments: str) -> tuple[str, str]:
        """The seed and the blob that a failing run prints."""
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, tmp_path],
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 1, done.stdout + done.stderr
        seed = re.search(r"--hypothesis-seed=(\d+)", done.stdout)
        blob = re.search(r"@reproduce_failure\(.*\)", done.stdout)
        assert seed and blob, done.stdout
        return seed[1], blob[0]

    seed, blob = fail()
    assert fail(f"--hypothesis-seed={seed}") == (seed, blob)


def test_a_child_sees_the_same_terminal_everywhere() -> None:
    assert os.environ["COLUMNS"] == "400"
    assert not {"FORCE_COLOR", "NO_COLOR", "LINES"} & os.environ.keys()
