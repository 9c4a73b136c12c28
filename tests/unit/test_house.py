"""The house: imports run one way, up the list of floors; every room says what it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
PACKAGE = SOURCE / "domain_pretrain"

# From the ground up. A module imports from its own room and from floors below, nothing else.
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "errors",
        "paths",
        "process",
        "refusal",
        "stats",
        "suggest",
        "version",
        "zigzag",
    ),
    ("file_lock", "flags", "json_file", "whole_file", "whole_folder", "yaml_file"),
    ("checkpoints", "section"),
    ("rules",),
    ("records", "seams"),
    ("kernels", "prepare", "strategies"),
    ("data", "watch"),
    ("adapt", "evaluate"),
    ("backends", "huggingface", "report"),
    ("config",),
    ("flow", "planning"),
    ("hosts",),
    ("demo",),
    ("__init__",),  # enable, disable, DomainStep
    ("__main__",),
    ("launch",),
    ("commands",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# Who may name Megatron: what adapts to it, and the writer of its data format.
MEGATRON = {"hosts", "backends", "prepare/output.py"}


def modules() -> Iterator[Path]:
    yield from sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The first part of a module's path in the package."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            for alias in node.names:
                inner = SOURCE.joinpath(*node.module.split("."), alias.name)
                is_module = inner.is_dir() or inner.with_suffix(".py").is_file()
                yield f"{node.module}.{alias.name}" if is_module else node.module


def test_every_room_has_a_floor() -> None:
    found = {room(path) for path in modules()}
    assert found - FLOOR.keys() == set()


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    here = room(path)
    upward = []
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "domain_pretrain":
            continue
        other = parts[1] if len(parts) > 1 else "__init__"
        if other != here and FLOOR[other] >= FLOOR[here]:
            upward.append(name)
    assert not upward, f"{here} stands on floor {FLOOR[here]}"


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_few_modules_name_megatron(path: Path) -> None:
    named = [name for name in imported(path) if name.split(".")[0] in ("megatron", "mindspeed")]
    assert not named or {room(path), str(path.relative_to(PACKAGE))} & MEGATRON


def test_a_class_variable_says_its_type() -> None:
    """Python 3.10 cannot read one that does not, where pydantic asks it to."""
    bare = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation).endswith("ClassVar")
    }
    assert not bare


@pytest.mark.parametrize("package", sorted(p.parent for p in PACKAGE.rglob("__init__.py")))
def test_every_room_has_a_name_plate(package: Path) -> None:
    """What happens here, in which order, who may import it: a few lines at its door."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8")))
    assert text is not None, f"{package.name}/__init__.py says nothing"
    assert 3 <= len(text.splitlines()) <= 20


TESTS = Path(__file__).parents[1]


def test_no_test_imports_a_test() -> None:
    """What two of them need is in tests/support, or in a module beside them."""
    found = [
        f"{path.relative_to(TESTS)} imports {name}"
        for path in sorted(TESTS.rglob("test_*.py"))
        for name in imported(path)
        if name.split(".")[-1].startswith("test_")
    ]
    assert not found


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports them by their names, whatever folder they are in."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
