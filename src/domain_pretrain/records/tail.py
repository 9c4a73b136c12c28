"""A file of lines that grows while it is read, and that a resume replaces by a shorter one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


class Tail:
    """What was added to a file since one looked last.

    Args:
        path: file and folder may be yet to come.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None  # open: so no other file can get its inode
        self._read = 0  # bytes, up to the end of a line

    def replaced(self) -> bool:
        """Whether what was read is there no more; if so, :meth:`lines` begins at the first one."""
        if self._file is None:
            return False
        try:
            now = os.stat(self._path)
            same = os.path.samestat(now, os.fstat(self._file.fileno()))
            if same and now.st_size >= self._read:
                return False
        except FileNotFoundError:
            pass
        self._file.close()
        self._file, self._read = None, 0
        return True

    def lines(self) -> Iterator[bytes]:
        """Lines that are whole by now, with their ends; a torn last line waits for its own."""
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return
        self._file.seek(self._read)
        while (line := self._file.readline()).endswith(b"\n"):
            self._read += len(line)
            yield line

    def written_at(self) -> float | None:
        """When the file grew last, in seconds since 1970; None: there is none."""
        return None if self._file is None else os.fstat(self._file.fileno()).st_mtime

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
