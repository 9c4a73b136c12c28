"""The tracker: which of a folder's checkpoints is the one to load."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

from domain_pretrain.whole_file import whole_file

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"  # instead of an iteration: a converted model, in a folder of that name
ABANDONED = "abandoned_{}"
_ITERATION = re.compile(r"[0-9]{1,18}")
_FOLDER = re.compile(r"iter_([0-9]{7}|[1-9][0-9]{7,17})")  # no other spelling is ever loaded


def read_tracker(folder: Path) -> str | None:
    """What ``folder``'s tracker says, be it right or not; None where there is no tracker."""
    tracker = folder / TRACKER
    # Of os.path, which says no to a name that no file can have.
    return tracker.read_text(errors="replace").strip() if os.path.isfile(tracker) else None


def iteration_of(said: str | None) -> int | None:
    """The iteration that a tracker says; None: there is no tracker, or it says something else."""
    return int(said) if said is not None and _ITERATION.fullmatch(said) else None


def folder_of(folder: Path, said: str) -> Path | None:
    """The checkpoint that ``folder``'s tracker says, be it there or not; None: it is torn."""
    if said == RELEASE:
        return folder / RELEASE
    iteration = iteration_of(said)
    return None if iteration is None else folder / f"iter_{iteration:07d}"


def write_tracker(folder: Path, iteration: int | str) -> None:
    """Let the tracker name an iteration, atomically; one process calls it, while none saves."""
    with whole_file(folder / TRACKER) as file:
        file.write(str(iteration).encode())
        file.flush()
        os.fsync(file.fileno())


def set_aside(folder: Path, after: int) -> None:
    """Move a folder's checkpoints after an iteration into a folder of their own, the next of
    :data:`ABANDONED`, in it: nothing finds them there. One process calls it, while none saves.
    """
    found = [path for at, path in checkpoints_of(folder).items() if at > after]
    if found:
        places = (folder / ABANDONED.format(number) for number in count(1))
        place = next(one for one in places if not one.exists())
        place.mkdir()
        for path in found:
            path.rename(place / path.name)


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """The checkpoints of a folder by their iteration, be they whole or not."""
    found = [] if not folder.is_dir() else list(folder.iterdir())
    matches = [(path, _FOLDER.fullmatch(path.name)) for path in found]
    return {int(match[1]): path for path, match in matches if match}
