"""Folders that are made at once: whole, or not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from domain_pretrain.errors import ConfigError


def check_free(folder: Path, flag: str = "") -> None:
    """That a folder can be made: it is not there, or empty.

    Args:
        folder: that a user named.
        flag: with which, if any, for the message.

    Raises:
        ConfigError: it holds something, or is a file.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{flag} {folder} is not empty; give a folder that is to be made".strip())


def unfinished(folder: Path) -> Path:
    """The folder that becomes ``folder`` once it is whole."""
    folder = folder.resolve()
    return folder.with_name(f".{folder.name}.part")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of ``folder`` at the end, or leaves no trace.

    What one that was killed has left is removed first: only one process makes a folder.

    Raises:
        OSError: it cannot be made, or ``folder`` is not free, see :func:`check_free`.
    """
    folder = folder.resolve()
    part = unfinished(folder)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
