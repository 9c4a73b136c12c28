"""``domain_metrics.jsonl`` as it is written: whole lines only, and no line twice after a resume."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import IO, Any

from domain_pretrain.errors import LogFolderError
from domain_pretrain.file_lock import hold
from domain_pretrain.paths import is_remote
from domain_pretrain.records.evaluated import EVALUATIONS_FILE
from domain_pretrain.records.reader import EVENTS_FILE, METRICS_FILE, is_header, parse_line

DISCARDED_FILE = "domain_metrics.discarded.jsonl"
_EVENT = b'{"event":'


def check_log_dir(path: str | Path) -> None:
    """Make the log folder and prove that metrics can be read and written there.

    Raises:
        LogFolderError: it cannot be; called before training, so that no run dies at its first log.
    """
    if is_remote(path):
        raise LogFolderError(
            f"the log folder {path} is in an object store: give --domain-log-dir a folder on a disk"
        )
    check_folder(path, "--domain-log-dir")
    for name in (METRICS_FILE, EVENTS_FILE, EVALUATIONS_FILE, DISCARDED_FILE):
        try:
            if Path(path, name).exists():
                with open(Path(path, name), "r+b"):
                    pass
        except OSError as error:
            raise _unusable(path, "--domain-log-dir", error) from error


def check_folder(path: str | Path | None, flag: str) -> None:
    """Make a folder and prove that one can write there; not in an object store, not without one.

    Args:
        path: the folder.
        flag: that gave it, for the message.

    Raises:
        LogFolderError: it cannot be used.
    """
    if not path or is_remote(path):
        return
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _unusable(path, flag, error) from error


def _unusable(path: str | Path, flag: str, error: OSError) -> LogFolderError:
    culprit = error.filename if isinstance(error.filename, str) else path
    return LogFolderError(
        f"the log folder {path} cannot be used: {error.strerror} ({culprit}). "
        f"Give a folder that this user can read and write with {flag}."
    )


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
        self._events: list[dict[str, Any]] = []  # that it had; see append_once
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
            # Before it is locked: opened and closed once more, a file is not locked any more.
            events = _events_from(path, after_iteration or 0)
            lines = cls(path)
            _lock(path, lines._file)
            lines._events = events
            return lines
        except OSError as error:
            raise _not_written(path, error) from error

    def append(self, entry: dict[str, Any], *, tight: bool = False) -> None:
        """Write one line, or none of it. ``entry`` holds no NaN or infinity: JSON has none.

        Args:
            entry: the line.
            tight: without spaces, which a long list of numbers need not have.

        Raises:
            LogFolderError: it cannot be written. The run ends, not to continue without its numbers.
        """
        separators = (",", ":") if tight else None
        line = json.dumps(entry, allow_nan=False, ensure_ascii=False, separators=separators) + "\n"
        # A lone surrogate (a path that is not UTF-8) becomes \\udcXX, which is its JSON escape.
        rest = memoryview(line.encode(errors="backslashreplace"))
        end = os.fstat(self._file.fileno()).st_size
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(end)
            raise _not_written(self.path, error) from error

    def append_once(self, entry: dict[str, Any]) -> None:
        """Write a line, unless the file had it when it was opened for a run that resumes: what each
        start from a checkpoint tells stays true, and is there once.

        Raises:
            LogFolderError: it cannot be written.
        """
        if entry not in self._events:
            self.append(entry)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()


def _lock(path: Path, file: IO[bytes]) -> None:
    hold(file, path, f"another run is writing to {path}: give each its own --domain-log-dir")


def _not_written(path: Path, error: OSError) -> LogFolderError:
    return LogFolderError(
        f"cannot write to {path}: {error.strerror}. Make room, and start the run again: it resumes "
        "from its newest checkpoint, and no line is lost."
    )


def _events_from(path: Path, iteration: int) -> list[dict[str, Any]]:
    """The events of a file that happened from an iteration on."""
    with open(path, "rb") as lines:
        found = [parse_line(line) for line in lines if line.startswith(_EVENT)]
    return [entry for entry in found if entry is not None and entry["iteration"] >= iteration]


def _stays(entry: dict[str, Any] | None, after_iteration: int | None) -> bool:
    """Whether a line is whole, not None, and was written before the checkpoint of an iteration.

    The host's order at iteration k is: train line, evaluation, checkpoint; and, where training
    ends at k, the final evaluations after it. So lines at k stay, except final ones: a run that
    resumes at k either makes them again or trains on, and then they do not belong to it.
    At iteration 0 there is no checkpoint: nothing stays. An event at k stays: it happened.
    """
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
        whole = (parse_line(line) if line.endswith(b"\n") else None for line in lines)
        if all(_stays(entry, after_iteration) for entry in whole):
            return
    place = Path(os.path.realpath(path))  # of a link: it stays, and its file is replaced
    temporary = place.with_name(place.name + ".tmp")
    discarded_path = path.with_name(DISCARDED_FILE)
    with (
        open(path, "rb") as lines,
        open(temporary, "wb") as kept,
        open(discarded_path, "ab") as discarded,
    ):
        header = b""
        for line in lines:
            line = line.rstrip(b"\n")
            entry = parse_line(line)
            stays = _stays(entry, after_iteration)
            if entry is not None and is_header(entry):
                header = line + b"\n" if stays else b""
            if stays:
                kept.write(line + b"\n")
            elif entry is not None:
                if "columns" in entry:  # whose names are in the header, which stays
                    discarded.write(header)
                    header = b""
                discarded.write(line + b"\n")
            else:  # as JSON, so that each of our files can be parsed to its last line
                torn = {"torn": line.decode(errors="backslashreplace")}
                discarded.write(json.dumps(torn).encode() + b"\n")
        # Both are on disk before the lines leave their old place: a crash in between may double
        # a discarded line, but loses none.
        for file in (kept, discarded):
            file.flush()
            os.fsync(file.fileno())
    os.replace(temporary, place)
