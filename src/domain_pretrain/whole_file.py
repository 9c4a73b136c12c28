"""Files that others may be looking at: whole, or not there."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from domain_pretrain.errors import ConfigError


def check_writable(path: Path, flag: str) -> None:
    """That :func:`whole_file` can write there, as far as can be told before the work is done.

    Args:
        path: that a user named.
        flag: with which, for the message.

    Raises:
        ConfigError: it is a folder, or its folder is not there or cannot be written to.
    """
    try:
        if path.is_dir():
            problem = "it is a folder"
        elif _is_written_through(path):
            problem = "" if os.access(path, os.W_OK) else "permission denied"
        else:
            with tempfile.TemporaryFile(dir=_followed(path).parent):
                problem = ""
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise ConfigError(
            f"cannot write {flag} {path}: {problem}. Give a file in a folder that is there, and "
            "that this user can write to."
        )


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes the place of ``path`` at the end, or leaves no trace.

    Of a link it is what the link names that is replaced; the link stays. What is there and is no
    file, a device or a pipe, cannot be replaced: it is written to at once.

    Raises:
        OSError: it cannot be written.
    """
    if _is_written_through(path):
        with open(path, "wb") as file:
            yield file
        return
    place = _followed(path)
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}")  # also on another node
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _is_written_through(path: Path) -> bool:
    # Of the path as it is given: /dev/stdout is a link to a name that no file has.
    return path.exists() and not path.is_file()


def _followed(path: Path) -> Path:
    return Path(os.path.realpath(path))
