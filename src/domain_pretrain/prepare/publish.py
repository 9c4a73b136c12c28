"""Files, or a folder, appear under their final names whole, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from domain_pretrain.prepare.encodings import UTF_8
from domain_pretrain.prepare.errors import PrepareError

_UNLISTED = ("bin", "manifest.json", "idx")
"""What a run of 0.1 replaced, which left no list of it."""


class Publication:
    """Gathers what a run writes in a folder, ``stage``, and moves it to its place at the end.

    A run that is killed at any moment leaves all of the old, all of the new or, killed amid the
    renames, neither; and ``stage``. The next run with the same one puts things right: see
    :meth:`_recover`.

    Args:
        stage: the folder; nobody else's, but what others put there stays.
        final: by its name in the stage, the place of everything that may appear, in that order.
            What comes last makes the rest valid, and what comes first is always there.
        check: says which of those names this run replaces, whether or not it writes them all;
            raises where it may not. Called without and with the lock.

    Raises:
        PrepareError: ``check``'s; on entering: another run is writing.
    """

    def __init__(
        self, stage: Path, final: Mapping[str, Path], check: Callable[[], Sequence[str]]
    ) -> None:
        self.stage = stage
        self._final = final
        self._check = check
        self._old = stage / "old"
        self._replaced: Sequence[str] = ()
        if not stage.exists():  # else it is in doubt what exists, until _recover()
            check()

    def __enter__(self) -> Publication:
        self.stage.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.stage / "lock")
        self._recover()
        try:
            self._discard()
            self._replaced = self._check()  # only under the lock is nobody about to create them
        except BaseException:
            self._clear()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._recover()
        self._clear()

    def commit(self, then: Callable[[Sequence[str]], None]) -> None:
        """Move everything to its place.

        What is there is put aside first, in the opposite order; so what comes last is never beside
        what it does not belong to.

        Args:
            then: done in between with the names that are replaced: what else goes with the old.
        """
        for name in self._replaced:
            _sync(self.stage / name)
        (self.stage / "names").write_text("\n".join(self._replaced), UTF_8)
        self._old.mkdir()  # from here on _recover() looks at the final places
        for name in reversed(self._replaced):
            if self._final[name].exists():
                self._final[name].replace(self._old / name)
        then(self._replaced)
        for name in self._replaced:
            if (self.stage / name).exists():
                (self.stage / name).replace(self._final[name])
        _sync_folder(self.stage.parent)

    def _recover(self) -> None:
        """Undo a commit that did not reach its end: all of the old is back, or there is none.

        During a commit new things either are staged or have their places, and the first that gets
        its place does so after all the old is put aside: while it is staged, what is in the final
        places is old, and afterwards new. Interrupted itself, this can start again.
        """
        names = self._names()
        if not self._old.is_dir() or not (self.stage / names[-1]).exists():
            return  # no commit had begun, or it was complete
        if not (self.stage / names[0]).exists():
            for name in reversed(names):
                if self._final[name].exists():
                    self._final[name].replace(self.stage / name)
        for name in names:
            if (self._old / name).exists():
                (self._old / name).replace(self._final[name])
        self._old.rmdir()

    def _names(self) -> list[str]:
        """That the run which has left the stage replaces."""
        try:
            listed = (self.stage / "names").read_text(UTF_8).split("\n")
        except OSError:
            listed = list(_UNLISTED)
        return [name for name in self._final if name in listed] or list(self._final)

    def _discard(self) -> None:
        """Remove what is staged and what was put aside, but nothing else that is in the folder."""
        for name in self._final:
            _remove(self._old / name)
        if self._old.is_dir():
            self._old.rmdir()
        for name in self._final:
            _remove(self.stage / name)
        _remove(self.stage / "names")

    def _clear(self) -> None:
        self._discard()
        (self.stage / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another program keeps something in it
            self.stage.rmdir()
        self._lock.close()


def _lock(path: Path) -> IO[bytes]:
    """Hold ``path`` until it is closed or the process ends, however it ends."""
    file = path.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise PrepareError(f"{path.parent}: another run is writing this corpus") from error
    except OSError:
        pass  # a file system without locks
    return file


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Bring a file, or a folder and all in it, to disk.

    After a power cut no final name may refer to lost content.
    """
    if not path.is_dir():
        if path.exists():
            _sync_folder(path)
        return
    for folder, _, files in os.walk(path):
        for name in files:
            _sync_folder(Path(folder, name))
        _sync_folder(Path(folder))


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
