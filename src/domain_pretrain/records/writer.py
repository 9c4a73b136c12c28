"""``domain_metrics.jsonl`` as it is written: whole lines only, and no line twice after a resume."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from domain_pretrain.errors import LogFolderError
from domain_pretrain.paths import is_remote
from domain_pretrain.process import notice
from domain_pretrain.records.reader import METRICS_FILE, parse_line

DISCARDED_FILE = "domain_metrics.discarded.jsonl"
LOCK_PATIENCE_S = 100  # an NFS server forgets the locks of a machine that has crashed after 90


def check_log_dir(path: str | Path) -> None:
    """Make the log folder and prove that metrics can be read and written there.

    Raises:
        LogFolderError: it cannot be; called before training, so that no run dies at its first log.
    """
    if is_remote(path):
        raise LogFolderError(
            f"the log folder {path} is in an object store: give --domain-log-dir a folder on a disk"
        )
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        for name in (METRICS_FILE, DISCARDED_FILE):
            if (path / name).exists():
                with open(path / name, "r+b"):
                    pass
    except OSError as error:
        culprit = error.filename if isinstance(error.filename, str) else path
        raise LogFolderError(
            f"the log folder {path} cannot be used: {error.strerror} ({culprit}). "
            "Give a folder that this user can read and write with --domain-log-dir."
        ) from error


class LinesFile:
    """Appends lines. Each goes to the operating system at once: ``kill -9`` loses none.

    There is no fsync: it would hold up the training step on a shared file system. A crash of the
    machine may lose the last seconds of lines, and leaves at most one torn line, which the next
    :meth:`open` sets aside; without it, the torn line ends where the next one begins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Unbuffered: what a full disk refuses does not come back from a buffer later.
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 -- lives as long as the run
        if self._file.tell() and os.pread(self._file.fileno(), 1, self._file.tell() - 1) != b"\n":
            self._file.write(b"\n")

    @classmethod
    def open(cls, path: str | Path, after_iteration: int | None) -> LinesFile:
        """Open for a run that continues after ``after_iteration``.

        What that run will produce again is cut from the file and kept beside it, in
        ``domain_metrics.discarded.jsonl``.

        Args:
            path: the file; it need not exist.
            after_iteration: the iteration of the checkpoint the run starts from; 0 for a fresh
                run; None when it will not train (``--skip-train``): then every line stays.

        Raises:
            LogFolderError: lines cannot be moved (a full disk, say); all are where they were. Or
                another process writes to the file.
        """
        path = Path(path)
        try:
            with open(path, "ab") as file:
                _lock(path, file)  # no lines of a run that lives are cut
            _cut(path, after_iteration)
            lines = cls(path)
            _lock(path, lines._file)
            return lines
        except OSError as error:
            raise _not_written(path, error) from error

    def append(self, entry: dict[str, Any]) -> None:
        """Write one line, or none of it. ``entry`` holds no NaN or infinity: JSON has none.

        Raises:
            LogFolderError: it cannot be written. The run ends, not to continue without its numbers.
        """
        line = json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n"
        # A lone surrogate (a path that is not UTF-8) becomes \\udcXX, which is its JSON escape.
        rest = memoryview(line.encode(errors="backslashreplace"))
        end = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(end)
            raise _not_written(self.path, error) from error

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()


def _lock(path: Path, file: IO[bytes]) -> None:
    """Keep other processes from writing to the file, as long as this one has it open.

    A POSIX lock, since children do not inherit it: one that outlives a killed run holds nothing.
    Where the file system knows no locks, there is none.
    """
    end = time.monotonic() + LOCK_PATIENCE_S
    told = False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return
        if time.monotonic() >= end:
            raise LogFolderError(
                f"another run is writing to {path}: give each its own --domain-log-dir. If none "
                "is, a machine that crashed has left its lock: copy the file and put the copy in "
                "its place."
            )
        if not told:
            notice(f"another process has {path} open: waiting up to {LOCK_PATIENCE_S} s")
            told = True
        time.sleep(1)


def _not_written(path: Path, error: OSError) -> LogFolderError:
    return LogFolderError(
        f"cannot write to {path}: {error.strerror}. Make room, and start the run again: it resumes "
        "from its newest checkpoint, and no line is lost."
    )


def _stays(line: bytes, after_iteration: int | None) -> bool:
    """Whether a line is whole and was written before the checkpoint of ``after_iteration``.

    The host's order at iteration k is: train line, evaluation, checkpoint; and, where training
    ends at k, the final evaluations after it. So lines at k stay, except final ones: a run that
    resumes at k either makes them again or trains on, and then they do not belong to it.
    At iteration 0 there is no checkpoint: nothing stays. An event at k stays: it happened.
    """
    entry = parse_line(line)
    if entry is None:
        return False
    if after_iteration is None:
        return True
    if entry["iteration"] == after_iteration > 0:
        return not entry.get("final", False)
    return bool(entry["iteration"] < after_iteration)


def _cut(path: Path, after_iteration: int | None) -> None:
    """Move the lines that do not stay, atomically; a file without such lines is left untouched.

    Line by line: with 1,000 domains the file of a long run has gigabytes.
    """
    with open(path, "rb") as lines:
        if all(line.endswith(b"\n") and _stays(line, after_iteration) for line in lines):
            return
    temporary = path.with_name(path.name + ".tmp")
    discarded_path = path.with_name(DISCARDED_FILE)
    with (
        open(path, "rb") as lines,
        open(temporary, "wb") as kept,
        open(discarded_path, "ab") as discarded,
    ):
        for line in lines:
            line = line.rstrip(b"\n")
            if _stays(line, after_iteration):
                kept.write(line + b"\n")
            elif parse_line(line) is not None:
                discarded.write(line + b"\n")
            else:  # as JSON, so that each of our files can be parsed to its last line
                torn = {"torn": line.decode(errors="backslashreplace")}
                discarded.write(json.dumps(torn).encode() + b"\n")
        # Both are on disk before the lines leave their old place: a crash in between may double
        # a discarded line, but loses none.
        for file in (kept, discarded):
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, path)
