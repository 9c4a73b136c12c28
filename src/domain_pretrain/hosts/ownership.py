"""One run at a time saves to a folder: two would overwrite each other's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from domain_pretrain.errors import WriterError
from domain_pretrain.file_lock import hold
from domain_pretrain.paths import is_remote

LOCK_FILE = ".domain_pretrain.lock"


def own_folder(save: str | None) -> IO[bytes] | None:
    """Take the folder of ``--save``; it is this process's until the file is closed.

    One rank calls it, before training.

    Returns:
        What holds the lock; None where there is none to hold.

    Raises:
        WriterError: another run has it, or this user cannot write there.
    """
    if save is None or is_remote(save):
        return None
    path = Path(save, LOCK_FILE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab")  # noqa: SIM115 -- open as long as the run
    except OSError as error:
        raise WriterError(
            f"--save {save} cannot be used: {error.strerror} ({error.filename})"
        ) from error
    hold(file, path, f"another run is saving to {save}: give each its own --save")
    return file
