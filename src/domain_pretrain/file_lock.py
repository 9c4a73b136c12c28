"""One process at a time: a lock on a file that other machines see, too."""

from __future__ import annotations

import errno
import fcntl
import time
from pathlib import Path
from typing import IO, Any

from domain_pretrain.errors import WriterError
from domain_pretrain.process import notice

PATIENCE_S = 100  # an NFS server forgets the locks of a machine that has crashed after 90


def hold(file: IO[Any], path: Path, taken: str) -> None:
    """Keep other processes from the file, as long as this one has it open.

    A POSIX lock, since children do not inherit it: one that outlives a killed run holds nothing.
    Where the file system knows no locks, there is none.

    Args:
        file: open for writing.
        path: its name.
        taken: what is the matter, and what to do, where another process holds it.

    Raises:
        WriterError: another process has held it for :data:`PATIENCE_S`.
    """
    end = time.monotonic() + PATIENCE_S
    told = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
        if time.monotonic() >= end:
            raise WriterError(
                f"{taken}. If none is, a machine that crashed has left its lock: copy {path} and "
                "put the copy in its place."
            )
        if not told:
            notice(f"another process has {path} open: waiting up to {PATIENCE_S} s")
            told = True
        time.sleep(1)
