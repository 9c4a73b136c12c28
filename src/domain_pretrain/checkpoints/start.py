"""The checkpoint that a run's model is loaded from, by Megatron's arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.checkpoints.tracker import RELEASE, TRACKER, folder_of, read_tracker
from domain_pretrain.errors import ConfigError
from domain_pretrain.paths import is_remote


def holds(folder: str) -> bool:
    """Whether a folder has a checkpoint; of an object store that is taken for granted."""
    # Of os.path, which says no to a name that no file can have.
    return is_remote(folder) or os.path.isfile(os.path.join(folder, TRACKER))


def starts_from(args: Any) -> str | None:
    """The folder, as it was given: the base only while the run has no checkpoint of its own.

    None: the run starts from no model.
    """
    given = (getattr(args, name, None) for name in ("load", "pretrained_checkpoint"))
    return next((folder for folder in given if folder and holds(folder)), None)


def saved_at_start(args: Any) -> Mapping[str, Any] | None:
    """The arguments in that checkpoint, none where they cannot be read.

    None: the run starts from no model, or from one in an object store, which is not looked into.
    """
    folder = starts_from(args)
    if folder is None or is_remote(folder):
        return None
    said, step = read_tracker(Path(folder)), getattr(args, "ckpt_step", None)
    if step and said != RELEASE:  # which Megatron loads whatever the step
        said = str(step)
    checkpoint = folder_of(Path(folder), said or "")
    return {} if checkpoint is None else _saved(checkpoint.resolve())


@lru_cache(maxsize=1)  # several recipes ask
def _saved(checkpoint: Path) -> Mapping[str, Any]:
    try:
        return read_saved(checkpoint).args
    except ConfigError:  # the host says why, if it is one for it, too
        return {}
