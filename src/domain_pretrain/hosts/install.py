"""Install the plugin in this process, and take it out again."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from domain_pretrain.backends import cpu, select
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.hosts import mindspeed
from domain_pretrain.hosts.command_line import flags_of_command_line
from domain_pretrain.hosts.experts import EXPERT_SEAMS
from domain_pretrain.hosts.megatron import SEAMS, clear_exit
from domain_pretrain.seams.importhook import after_import
from domain_pretrain.seams.seam import (
    Seam,
    apply,
    check_undo,
    misfits,
    package_root,
    undo,
)

_enabled = False
_checked: set[Path] = set()


def enable(backend: str | None = None) -> None:
    """Install the plugin: before or after ``import megatron``, once or more often.

    Nothing is imported and nothing changes until Megatron's modules load; and their behaviour stays
    the same until ``--channel-loss`` or ``--domain-config`` is given.

    Args:
        backend: ``auto`` (the accelerator, else the CPU), ``cpu``, ``cuda`` or ``npu``; default:
            what ``--domain-backend`` says. The CPU backend must come before ``import megatron``.
    """
    global _enabled
    with clear_exit():
        if select(backend or flags_of_command_line().domain_backend) == "cpu":
            cpu.install()
    _enabled = True
    after_import(mindspeed.MANAGER, _join_mindspeed)
    after_import(mindspeed.LOOP, _check_loop)
    after_import(mindspeed.FSDP2, _refuse)
    for name in dict.fromkeys(seam.module for seam in SEAMS):
        after_import(name, functools.partial(_apply, [s for s in SEAMS if s.module == name]))


def disable() -> None:
    """Take the seams out again. The CPU backend stays: Megatron cannot run here without it.

    Raises:
        UnsupportedError: another patch sits on top of a seam; then all of them stay.
    """
    global _enabled
    _undo(SEAMS + EXPERT_SEAMS)
    if mindspeed.present():
        _undo([mindspeed.FEATURES])
        mindspeed.take_back()
    _enabled = False


def _undo(found: Sequence[Seam]) -> None:
    imported = [(s, sys.modules[s.module]) for s in reversed(found) if s.module in sys.modules]
    for step in (check_undo, undo):
        for seam, module in imported:
            step(seam, module)


def _apply(found: Sequence[Seam], module: ModuleType) -> None:
    if not _enabled:
        return
    with clear_exit():
        _check_all(SEAMS, package_root(module))
    if mindspeed.present():
        return  # its patch manager applies them
    for seam in found:
        apply(seam, module)


def _join_mindspeed(module: ModuleType) -> None:
    """Leave the seams to MindSpeed's patch manager, whatever it has done so far."""
    if not _enabled:
        return
    with clear_exit():
        _check_all([mindspeed.FEATURES], package_root(module))
    _undo(SEAMS)
    apply(mindspeed.FEATURES, module)
    if mindspeed.patched():
        mindspeed.hand_over()


def _check_loop(module: ModuleType) -> None:
    problem = mindspeed.check_loop(package_root(module))
    if _enabled and problem:
        with clear_exit():
            raise UnsupportedError(f"this MindSpeed-LLM bypasses the plugin's seams: {problem}")


def _refuse(module: ModuleType) -> None:
    if _enabled and flags_of_command_line().channel_loss:
        with clear_exit():
            raise UnsupportedError(
                f"{module.__name__} is a training loop without Megatron, which the plugin hooks "
                "into; train with TRAINING_BACKEND=mcore"
            )


def _check_all(found: Sequence[Seam], root: Path) -> None:
    """All seams of a package are checked before the first is applied."""
    if root in _checked:
        return
    problems = misfits(found, root)
    if problems:
        raise UnsupportedError(
            f"this {root.name} ({root}) does not have what the plugin hooks into:\n  "
            + "\n  ".join(problems)
            + "\nrun `domain-pretrain doctor` and use a supported version"
        )
    _checked.add(root)
