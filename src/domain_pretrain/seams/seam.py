"""Seams: the few places where the plugin hooks into a host, as data.

``check`` reads the host's source without importing it, so ``doctor``, the start of a run, the
support table and the tests all walk the same tuple in the same way.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from domain_pretrain.errors import UnsupportedError

Wrapper = Callable[[Any], Any]


@dataclass(frozen=True)
class Seam:
    """One place in the host.

    Attributes:
        name: what the plugin calls it.
        target: ``module:attribute`` or ``module:Class.attribute``.
        parameters: parameters that the wrapper binds by name.
        why: why this place and not another.
        wrap: original → replacement, which calls the original; where it must not, ``why`` says so.
        absent: which hosts lack the target, and why that does no harm; empty: it must be there.
        assigned: the target is an attribute that a class's methods assign to ``self``, so nothing
            stands in the class yet: ``wrap`` gets None and returns a property.
    """

    name: str
    target: str
    parameters: tuple[str, ...]
    why: str
    wrap: Wrapper = field(repr=False)
    absent: str = ""
    assigned: bool = False

    @property
    def module(self) -> str:
        """Dotted module name."""
        return self.target.split(":")[0]

    @property
    def attribute(self) -> str:
        """Attribute path inside the module."""
        return self.target.split(":")[1]


def check(seam: Seam, root: Path) -> str | None:
    """Why ``seam`` does not fit the host whose ``megatron`` folder is ``root``; None if it does."""
    path = root.joinpath(*seam.module.split(".")[1:]).with_suffix(".py")
    if not path.is_file():
        return None if seam.absent else f"{seam.target}: the host has no {path}"
    if seam.assigned:
        assigned = _assigns(_parse(path), *seam.attribute.split("."))
        return None if assigned else f"{seam.target}: {path} never assigns {seam.attribute}"
    found = _find(_parse(path), seam.attribute.split("."))
    if found is None:
        return None if seam.absent else f"{seam.target}: {path} does not define {seam.attribute}"
    if isinstance(found, ast.ImportFrom):
        return None  # bound here, defined elsewhere: its parameters are not ours to bind
    arguments = found.args
    names = [a.arg for a in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    missing = [p for p in seam.parameters if p not in names]
    if missing:
        return f"{seam.target}: no parameter {', '.join(missing)}; it has {', '.join(names)}"
    return None


def misfits(seams: Sequence[Seam], root: Path) -> list[str]:
    """What :func:`check` says of those that do not fit; empty where all do."""
    return [problem for problem in (check(seam, root) for seam in seams) if problem]


def package_root(module: ModuleType) -> Path:
    """The folder of the package (``megatron``, ``mindspeed``) that ``module`` came from."""
    path = Path(str(module.__file__)).resolve()
    return path.parents[len(module.__name__.split(".")) - 2]


@functools.lru_cache(maxsize=16)
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(tree: ast.Module, path: list[str]) -> ast.FunctionDef | ast.ImportFrom | None:
    body: Sequence[ast.stmt] = tree.body
    for part in path[:-1]:
        owner = next((n for n in body if isinstance(n, ast.ClassDef) and n.name == part), None)
        body = owner.body if owner else ()
    for node in body:
        if isinstance(node, ast.FunctionDef) and node.name == path[-1]:
            return node
        if isinstance(node, ast.ImportFrom) and path[-1] in (
            a.asname or a.name for a in node.names
        ):
            return node
    return None


def _assigns(tree: ast.Module, owner: str, attribute: str) -> bool:
    """Whether a method of the class ``owner`` assigns ``self.attribute``."""
    bodies = (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == owner)
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr == attribute
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
        for body in bodies
        for node in ast.walk(body)
    )


# target → what stands there now and what stood there before (None: nothing did).
_applied: dict[str, tuple[Any, Any]] = {}


def apply(seam: Seam, module: ModuleType) -> None:
    """Replace the seam's target in its imported module.

    A no-op while our wrapper stands there, or under somebody's patch; after a host restored its
    own function (MindSpeed's ``repatch``), it is applied again. A no-op, too, where the host lacks
    the target and the seam says that it may.

    Raises:
        UnsupportedError: the target is not there.
    """
    try:
        owner, attribute = _owner(seam, module)
        original = None if seam.assigned else getattr(owner, attribute)
    except AttributeError as error:
        if seam.absent:
            return
        package = seam.module.split(".")[0]
        raise UnsupportedError(
            f"this version of {package} does not have what the plugin hooks into: {seam.target} "
            f"(seam {seam.name!r}): {error}; use a supported version"
        ) from None
    if _ours(seam) in _chain(getattr(owner, attribute, None)):
        return
    wrapper: Any = seam.wrap(original)
    if original is not None:
        wrapper = functools.wraps(original)(wrapper)
    setattr(owner, attribute, wrapper)
    _applied[seam.target] = (wrapper, original)


def check_undo(seam: Seam, module: ModuleType) -> None:
    """Refuse to take our wrapper out from under another patch.

    Raises:
        UnsupportedError: undoing would drop that patch.
    """
    owner, attribute = _owner(seam, module)
    current, ours = getattr(owner, attribute, None), _ours(seam)
    if current is not ours and ours in _chain(current):
        raise UnsupportedError(
            f"cannot undo seam {seam.name!r}: {seam.target} was patched again after us (now "
            f"{current!r}); undo that patch first"
        )


def undo(seam: Seam, module: ModuleType) -> None:
    """Put the original back; a no-op where our wrapper is not in place.

    Raises:
        UnsupportedError: another patch sits on top of ours.
    """
    check_undo(seam, module)
    owner, attribute = _owner(seam, module)
    if getattr(owner, attribute, None) is not _ours(seam):
        return
    _, original = _applied.pop(seam.target)
    if original is None:
        delattr(owner, attribute)
    else:
        setattr(owner, attribute, original)


def _ours(seam: Seam) -> Any:
    return _applied.get(seam.target, (object(), None))[0]


def _chain(function: Any) -> list[Any]:
    """``function`` and everything it wraps."""
    chain = [function]
    while hasattr(chain[-1], "__wrapped__"):
        chain.append(chain[-1].__wrapped__)
    return chain


def _owner(seam: Seam, module: ModuleType) -> tuple[Any, str]:
    *path, attribute = seam.attribute.split(".")
    owner: Any = module
    for part in path:
        owner = getattr(owner, part)
    return owner, attribute
