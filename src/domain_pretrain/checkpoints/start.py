"""The checkpoint that a run's model is loaded from, by Megatron's arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.checkpoints.tracker import (
    RELEASE,
    TRACKER,
    checkpoints_of,
    folder_of,
    read_tracker,
)
from domain_pretrain.errors import ConfigError
from domain_pretrain.paths import is_remote


def holds(folder: str | Path) -> bool:
    """Whether a folder has a checkpoint; of an object store that is taken for granted."""
    # Of os.path, which says no to a name that no file can have.
    return is_remote(folder) or os.path.isfile(os.path.join(folder, TRACKER))


def folder_at_start(args: Any) -> Any:
    """The folder that Megatron reads, as it was given, be there a checkpoint or not.

    That of the base only while the run has no checkpoint of its own. None: neither is given.
    """
    load, base = (getattr(args, name, None) for name in ("load", "pretrained_checkpoint"))
    return base if base and not (load and holds(load)) else load or None


def starts_from(args: Any) -> Any:
    """That folder; None: the run starts from no model."""
    folder = folder_at_start(args)
    # By --ckpt-step Megatron asks no tracker.
    return folder if folder and (getattr(args, "ckpt_step", None) or holds(folder)) else None


def checkpoint_at_start(args: Any) -> Path | None:
    """The checkpoint that Megatron reads there: the tracker's, or that of ``--ckpt-step``.

    None: the run starts from no model, or from one in an object store, which is not looked into.

    Raises:
        ConfigError: it does not exist; Megatron would end in a traceback.
    """
    given = starts_from(args)
    if given is None or is_remote(given):
        return None
    folder, step = Path(given), getattr(args, "ckpt_step", None)
    said, named_by = read_tracker(folder) or "", f"its {TRACKER}"
    if step and said != RELEASE:  # which Megatron loads whatever the step
        said, named_by = str(step), f"--ckpt-step {step}"
    checkpoint = folder_of(folder, said)
    if checkpoint is None:
        raise ConfigError(f"the {TRACKER} of {folder} is torn: {said[:80]!r}")
    if not checkpoint.is_dir():
        there = ", ".join(map(str, sorted(checkpoints_of(folder)))) or "none"
        raise ConfigError(
            f"{checkpoint} does not exist, which {named_by} names; iterations there: {there}"
        )
    return checkpoint


def saved_at_start(args: Any) -> Mapping[str, Any] | None:
    """The arguments in that checkpoint, none where they cannot be read; None where there is none.

    Raises:
        ConfigError: see :func:`checkpoint_at_start`.
    """
    checkpoint = checkpoint_at_start(args)
    return None if checkpoint is None else _saved(checkpoint.resolve())


@lru_cache(maxsize=1)  # several recipes ask
def _saved(checkpoint: Path) -> Mapping[str, Any]:
    try:
        return read_saved(checkpoint).args
    except ConfigError:  # the host says why, if it is one for it, too
        return {}
