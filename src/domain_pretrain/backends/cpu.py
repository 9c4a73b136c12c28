"""Megatron on CPUs: gloo instead of NCCL, its own unfused layers instead of Transformer Engine.

For demos and tests: every parallel layout runs, none of them fast. Megatron's code is
unchanged; what it cannot do without CUDA is provided by :mod:`.torch_cuda`, and the few of its
functions that are wrong here (:mod:`.cpu_seams`) are wrapped when it is imported.
"""

from __future__ import annotations

import os
import sys
from argparse import Action, ArgumentParser
from functools import partial
from typing import Any

from domain_pretrain.backends import local_layers, torch_cuda
from domain_pretrain.backends.cpu_seams import CUDA_EXTENSIONS, SEAMS
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.flags import names_of
from domain_pretrain.seams.importhook import after_import
from domain_pretrain.seams.seam import apply

# What a user would type. A flag that this Megatron does not know is skipped.
FLAGS: tuple[tuple[str, str | None], ...] = (
    ("--distributed-backend", "gloo"),
    ("--use-cpu-initialization", None),
    *local_layers.FLAGS,
    ("--no-bias-gelu-fusion", None),
    ("--no-bias-swiglu-fusion", None),
    ("--no-bias-dropout-fusion", None),
    ("--num-workers", "0"),
)

_installed = False


def install() -> None:
    """Make this process run Megatron on the CPU; a second call does nothing.

    Call it before ``megatron`` is imported.

    Raises:
        UnsupportedError: ``megatron.core`` is imported already, so names that it took from
            ``torch.cuda`` can no longer be replaced.
    """
    global _installed
    if _installed:
        return
    if "megatron.core" in sys.modules:
        raise UnsupportedError(
            "the CPU backend must be installed before megatron.core is imported: "
            "launch with `-m domain_pretrain`, or call enable() above the megatron imports"
        )
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    torch_cuda.install()
    for seam in SEAMS:
        after_import(seam.module, partial(apply, seam))
    _installed = True


def skip_cuda_extensions() -> None:
    """Let ``megatron.core`` be imported where there is no GPU to compile for."""
    after_import(CUDA_EXTENSIONS.module, partial(apply, CUDA_EXTENSIONS))


def add_default_flags(parser: ArgumentParser) -> dict[str, str]:
    """Make :data:`FLAGS` the defaults of Megatron's ``parser``; the command line takes precedence.

    Returns:
        What was supplied, option to value (empty for a switch), without those that the user gave.
    """
    actions = parser._option_string_actions
    given = {actions[word].dest for word in names_of(sys.argv[1:]) if word in actions}
    supplied: dict[str, str] = {}
    for option, value in FLAGS:
        action = actions.get(option)
        if action is not None and action.dest not in given:
            parser.set_defaults(**{action.dest: _default(action, value)})
            supplied[option] = value or ""
    return supplied


def describe(supplied: dict[str, str]) -> str:
    """The line that tells the user what :func:`add_default_flags` supplied."""
    flags = " ".join(f"{option} {value}".strip() for option, value in supplied.items())
    return f"CPU backend, for demos and tests: supplied {flags or 'nothing'}"


def _default(action: Action, value: str | None) -> Any:
    if value is None:
        return True if action.const is None else action.const
    return action.type(value) if callable(action.type) else value
