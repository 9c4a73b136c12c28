"""Text that every Python installation contains: the standard library's source and documentation."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from domain_pretrain.prepare.errors import PrepareError

# Not the standard library's own prose and code: tests, installed packages, generated tables.
LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idle_test",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
}
SHORTEST_DOCSTRING = 60


def standard_library() -> dict[str, Path]:
    """Module name → source file of the standard library, in a fixed order; the same in a venv."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = {
        ".".join(path.relative_to(root).with_suffix("").parts): path
        for path in sorted(root.rglob("*.py"))
        if not LEFT_OUT.intersection(path.relative_to(root).parts)
        # Generated where Python was built: contains that machine's names.
        and not path.name.startswith(("_sysconfigdata", "sitecustomize", "usercustomize"))
    }
    if not files:
        raise PrepareError(
            f"{root}: no source of the standard library; the demo needs a Python that has it"
        )
    return files


def documentation_topics() -> Iterator[str]:
    """Yield the chapters behind ``help("FOR")`` and the like."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield topics[name]


def split_source(module: str, source: str) -> tuple[str, list[str]]:
    """Split one module's source, without running it.

    Returns:
        the source without docstrings, and the docstrings, each under its qualified name: no text
        is in both.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # a template that only looks like a module
        return source, []
    lines: list[str | None] = [*source.split("\n")]
    docstrings = []
    for name, node in _documented(tree, module):
        text = ast.get_docstring(node) or ""
        if len(text) >= SHORTEST_DOCSTRING:
            docstrings.append(f"{name}\n\n{text}\n")
        expression = node.body[0]
        for number in range(expression.lineno, (expression.end_lineno or expression.lineno) + 1):
            lines[number - 1] = None
    return "\n".join(line for line in lines if line is not None), docstrings


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _documented(node: ast.AST, name: str) -> Iterator[tuple[str, ast.Module | Definition]]:
    """Yield (qualified name, node) of ``node`` and all below it that have a docstring."""
    if isinstance(node, ast.Module | Definition) and ast.get_docstring(node, clean=False):
        yield name, node
    for child in ast.iter_child_nodes(node):
        yield from _documented(
            child, f"{name}.{child.name}" if isinstance(child, Definition) else name
        )
