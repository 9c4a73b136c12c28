"""How far a run gets before it touches a device, and why the host refuses it."""

from __future__ import annotations

import ast
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import Any

from domain_pretrain.errors import DomainPretrainError
from domain_pretrain.seams.importhook import after_import

# The frames of a refusal: it comes from the host's own code, out of one of these functions.
_HOSTS = ("megatron", "mindspeed", "mindspeed_llm", "domain_pretrain", "__main__")
_CHECKS = ("parse_args", "validate", "build_what_follows")


def after_validation(then: Callable[[], None]) -> None:
    """Call ``then`` once the host has validated its flags, and what it makes of them at once.

    To be installed after the plugin, so that the plugin's own checks come before ``then``.
    """

    def hook(module: ModuleType) -> None:
        original = module.validate_args

        def validate_args(args: Any, *rest: Any, **kwargs: Any) -> Any:
            result = original(args, *rest, **kwargs)
            build_what_follows(module, args)
            then()
            return result

        module.validate_args = validate_args  # type: ignore[attr-defined]

    after_import("megatron.training.arguments", hook)


def build_what_follows(arguments: ModuleType, args: Any) -> None:
    """The batch's schedule and the model's config, which have checks of their own.

    Args:
        arguments: the host's module of that name.
        args: validated.
    """
    from megatron.core.num_microbatches_calculator import init_num_microbatches_calculator as init

    # Its parameters are called as the flags are; later versions have more of them.
    names = inspect.signature(init).parameters
    init(**{name: getattr(args, name) for name in names if hasattr(args, name)})
    arguments.core_transformer_config_from_args(args)


def version() -> str:
    """Of the host that has been imported."""
    core = sys.modules.get("megatron.core")
    # Without what a checkout adds: the commit of whatever repository lies around it.
    number = str(getattr(core, "__version__", "of unknown version")).partition("+")[0]
    return f"megatron.core {number}"


@dataclass(frozen=True)
class Refusal:
    """Why a run may not start, in the words of the host or of the plugin in it."""

    text: str
    by_host: bool = True


def refusal(error: BaseException) -> Refusal | None:
    """What ``error``, which ended the start, says; None where something went wrong instead."""
    # How the plugin ends; see hosts.megatron.clear_exit.
    cause = error.__context__ if isinstance(error, SystemExit) else error
    if isinstance(cause, DomainPretrainError):
        return Refusal(str(cause), by_host=False)
    frames = list(_frames(error.__traceback__))
    asked = any(part in tb.tb_frame.f_code.co_name for tb in frames for part in _CHECKS)
    deliberate = isinstance(error, (AssertionError, ValueError, RuntimeError))
    if not asked or not (deliberate or type(error) is Exception):
        return None
    if str(frames[-1].tb_frame.f_globals.get("__name__")).split(".")[0] not in _HOSTS:
        return None
    if not isinstance(error, AssertionError):
        return Refusal(str(error) or type(error).__name__)
    condition, values = _assertion(frames[-1])
    text = str(error) or f"it asserts {condition or 'something that cannot be read'}"
    return Refusal(f"{text} ({values})" if values else text)


def _frames(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _assertion(at: TracebackType) -> tuple[str, str]:
    """The condition of a failed ``assert``, and the values in it: few say what they found."""
    source = "".join(linecache.getlines(at.tb_frame.f_code.co_filename))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert) and node.lineno <= at.tb_lineno <= (node.end_lineno or 0):
            found = dict(_values(node.test, at.tb_frame.f_locals))
            return ast.unparse(node.test), ", ".join(f"{k} = {v}" for k, v in found.items())
    return "", ""


def _values(test: ast.expr, variables: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Plain numbers and texts among the names and attributes of an expression."""
    for node in ast.walk(test):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name, value = node.attr, getattr(variables.get(node.value.id), node.attr, ...)
        elif isinstance(node, ast.Name):
            name, value = node.id, variables.get(node.id, ...)
        else:
            continue
        if value is None or isinstance(value, (bool, int, float, str)):
            yield name, repr(value)
