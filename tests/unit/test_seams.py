"""Seams: checked without importing, applied once, undone only where nobody else would notice."""

from __future__ import annotations

import functools
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.seams import seam as seams
from domain_pretrain.seams.seam import Seam

SOURCE = """
from json import dumps
def step(batch, *, scale=1): return [batch * scale]
class Scheduler:
    def __init__(self, step=3): self.step = step
    def state_dict(self): return {"step": self.step}
"""


def tenfold(original: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return [10 * value for value in original(*args, **kwargs)]

    return wrapper


def with_key(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self: {**original(self), "ours": 1}


STEP = Seam("step", "host.loop:step", ("batch", "scale"), "why", tenfold)
SAVE = Seam("save", "host.loop:Scheduler.state_dict", ("self",), "why", with_key)


def doubled(original: None) -> property:
    assert original is None
    return property(
        lambda self: vars(self)["step"], lambda self, step: vars(self).update(step=2 * step)
    )


COUNT = Seam("count", "host.loop:Scheduler.step", (), "why", doubled, assigned=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "host"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "loop.py").write_text(SOURCE)
    return folder


@pytest.fixture
def host(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(root.parent)
    monkeypatch.setattr(seams, "_applied", {})
    yield importlib.import_module("host.loop")
    for name in ("host.loop", "host"):
        del sys.modules[name]


def test_check_reads_the_source_only(root: Path) -> None:
    (root / "loop.py").write_text(SOURCE + "raise RuntimeError('imported')")
    assert seams.check(STEP, root) is None
    assert seams.check(SAVE, root) is None


@pytest.mark.parametrize(
    ("target", "parameters", "problem"),
    [
        ("host.gone:step", (), "the host has no"),
        ("host.loop:gone", (), "does not define gone"),
        ("host.loop:Scheduler.gone", (), "does not define Scheduler.gone"),
        ("host.loop:Gone.state_dict", (), "does not define Gone.state_dict"),
        ("host.loop:step", ("batch", "lr"), "no parameter lr; it has batch, scale"),
    ],
)
def test_check_names_what_is_missing(
    target: str, parameters: tuple[str, ...], problem: str, root: Path
) -> None:
    found = seams.check(Seam("x", target, parameters, "why", tenfold), root)
    assert found is not None
    assert found.startswith(target)
    assert problem in found


def test_check_accepts_a_name_that_is_imported_there(root: Path) -> None:
    assert seams.check(Seam("x", "host.loop:dumps", ("obj",), "why", tenfold), root) is None


def test_apply_and_undo(host: ModuleType) -> None:
    step, state_dict = host.step, host.Scheduler.state_dict
    for seam in (STEP, SAVE):
        seams.apply(seam, host)
    assert host.step(2, scale=3) == [60]
    assert host.step.__wrapped__ is step
    assert host.step.__name__ == "step"
    assert host.Scheduler().state_dict() == {"step": 3, "ours": 1}
    for seam in (SAVE, STEP):
        seams.undo(seam, host)
    assert host.step is step
    assert host.Scheduler.state_dict is state_dict


def test_an_attribute_that_the_class_assigns(root: Path, host: ModuleType) -> None:
    assert seams.check(COUNT, root) is None
    elsewhere = Seam("x", "host.loop:Scheduler.steps", (), "why", doubled, assigned=True)
    problem = seams.check(elsewhere, root)
    assert problem is not None and "never assigns Scheduler.steps" in problem
    for _ in range(2):
        seams.apply(COUNT, host)
        assert host.Scheduler(3).step == 6
    for _ in range(2):
        seams.undo(COUNT, host)
        assert host.Scheduler(3).step == 3


@pytest.mark.parametrize("target", ["host.loop:gone", "host.loop:Gone.state_dict"])
def test_a_target_that_may_be_absent(target: str, root: Path, host: ModuleType) -> None:
    """Skipped where the seam says so, and never silently."""
    optional = Seam("x", target, (), "why", tenfold, absent="older hosts, which need it not")
    assert seams.check(optional, root) is None
    seams.apply(optional, host)
    with pytest.raises(UnsupportedError, match=f"this version of host .*{target}"):
        seams.apply(Seam("x", target, (), "why", tenfold), host)


def test_twice_is_once(host: ModuleType) -> None:
    original = host.step
    seams.undo(STEP, host)  # nothing to undo yet
    seams.apply(STEP, host)
    seams.apply(STEP, host)
    assert host.step(1) == [10]
    seams.undo(STEP, host)
    seams.undo(STEP, host)
    assert host.step is original


def test_a_patch_on_top_stays(host: ModuleType) -> None:
    """Somebody wrapped us: not applied again over it, and not undone under it."""
    seams.apply(STEP, host)
    ours = host.step

    @functools.wraps(ours)
    def theirs(*args: Any, **kwargs: Any) -> Any:
        return [value + 1 for value in ours(*args, **kwargs)]

    host.step = theirs
    seams.apply(STEP, host)
    assert host.step is theirs
    with pytest.raises(UnsupportedError, match=r"cannot undo seam 'step': host\.loop:step"):
        seams.undo(STEP, host)
    assert host.step(1) == [11]
    host.step = ours
    seams.undo(STEP, host)
    assert host.step(1) == [1]


def test_applied_again_after_the_host_restored_its_own(host: ModuleType) -> None:
    original = host.step
    seams.apply(STEP, host)
    host.step = original
    seams.undo(STEP, host)  # not in place: nothing to do
    assert host.step is original
    seams.apply(STEP, host)
    assert host.step(1) == [10]
    seams.undo(STEP, host)
    assert host.step is original


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_changes_nothing() -> None:
    """Neither modules nor import hooks; torch and megatron are not even imported."""
    run(
        "import sys; hooks, path = list(sys.meta_path), list(sys.path)\n"
        "import domain_pretrain\n"
        "assert (hooks, path) == (sys.meta_path, sys.path)\n"
        "assert not {'torch', 'numpy', 'megatron'} & sys.modules.keys()"
    )
