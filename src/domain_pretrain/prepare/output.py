"""A corpus's files appear under their final names whole, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import warnings
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Manifest

SUFFIXES = ("bin", "manifest.json", "idx")
"""In the order in which they appear. Megatron reads no dataset without an ``.idx``."""


class CorpusWriter:
    """Writes ``PREFIX.bin``, ``.idx`` and ``.manifest.json`` through the folder ``PREFIX.tmp/``.

    A run that is killed at any moment leaves the old corpus, the new one or, killed amid the
    renames, files that Megatron does not read because the ``.idx`` is missing; and that folder.
    The next run for the same prefix puts things right: see :meth:`_recover`.

    Args:
        prefix: path of the files without their suffixes.
        force: replace an existing corpus.

    Attributes:
        dtype: of the ids; known once started, as is ``megatron_core``.
        megatron_core: the version that writes.

    Raises:
        PrepareError: the corpus exists; on entering: another run is writing it.
    """

    dtype: np.dtype[Any]
    megatron_core: str

    def __init__(self, prefix: Path, *, force: bool) -> None:
        self._prefix = prefix
        self._force = force
        self._stage = Path(f"{prefix}.tmp")
        self._old = self._stage / "old"
        self._builder: Any = None
        if not self._stage.exists():  # else it is in doubt what exists, until _recover()
            self._refuse_existing()

    def __enter__(self) -> CorpusWriter:
        self._stage.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._stage / "lock")
        self._recover()
        try:
            self._discard()
            self._refuse_existing()  # only under the lock is nobody about to create them
        except BaseException:
            self._clear()
            raise
        return self

    def _refuse_existing(self) -> None:
        existing = [str(path) for path in self._final.values() if path.exists()]
        if existing and not self._force:
            raise PrepareError(
                f"{', '.join(existing)}: exists already; choose another prefix, or --force"
            )

    def start(self, vocab_size: int) -> None:
        """Import Megatron, which takes seconds and so comes after all that may be refused.

        Args:
            vocab_size: number of ids; decides the dtype as Megatron does.

        Raises:
            PrepareError: megatron-core is missing.
        """
        try:
            with warnings.catch_warnings():
                # On the absence of fused optimizers, which matters to training and not here.
                warnings.simplefilter("ignore")
                from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
                from megatron.core.package_info import VERSION
        except ImportError as error:
            raise PrepareError(
                f"megatron-core cannot be imported ({error}); pip install "
                "'domain-pretrain[megatron]', or put your Megatron-LM checkout on PYTHONPATH"
            ) from error
        # Not __version__: from 0.18 on it ends with the commit of whatever git repository it is in,
        # which for an installed package is that of the user's own project.
        self.megatron_core = ".".join(map(str, VERSION[:3])) + "".join(VERSION[3:])
        self.dtype = np.dtype(DType.optimal_dtype(vocab_size))
        self._builder = IndexedDatasetBuilder(str(self._staged["bin"]), dtype=self.dtype.type)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._builder is not None:
            self._builder.data_file.close()
        self._recover()
        self._clear()

    def add(self, ids: np.ndarray, lengths: list[int]) -> None:
        """Append documents: their ``ids`` one after another, and how many each has."""
        start = 0
        for length in lengths:
            self._builder.add_document(ids[start : start + length], [length])
            start += length

    def commit(self, manifest: Manifest) -> None:
        """Move the files to their final names.

        An old corpus is put aside first, its ``.idx`` before the rest; the new ``.idx`` comes last
        and makes the commit. So an index is never beside another corpus's tokens.
        """
        self._builder.finalize(str(self._staged["idx"]))
        self._staged["manifest.json"].write_text(manifest.to_json(), "utf-8")
        for path in self._staged.values():
            _sync(path)
        self._old.mkdir()  # from here on _recover() looks at the final names
        for suffix in reversed(SUFFIXES):
            if self._final[suffix].exists():
                self._final[suffix].replace(self._old / suffix)
        # Megatron's shuffled indices of the old corpus: keyed by prefix, not by content.
        shutil.rmtree(self._prefix / "cache" / "GPTDataset_indices", ignore_errors=True)
        for suffix in SUFFIXES:
            self._staged[suffix].replace(self._final[suffix])
        _sync(self._prefix.parent)

    def _recover(self) -> None:
        """Undo a commit that did not reach its end: the old corpus is back, or there is none.

        During a commit a new file is either staged or has its final name, so a final name is the
        new corpus's where nothing is staged for it. Interrupted itself, this can start again.
        """
        if not self._old.is_dir() or not self._staged["idx"].exists():
            return  # no commit had begun, or it was complete
        for suffix in reversed(SUFFIXES):
            if not self._staged[suffix].exists() and self._final[suffix].exists():
                self._final[suffix].replace(self._staged[suffix])
        for suffix in SUFFIXES:
            if (self._old / suffix).exists():
                (self._old / suffix).replace(self._final[suffix])
        self._old.rmdir()

    @property
    def _final(self) -> dict[str, Path]:
        return {suffix: Path(f"{self._prefix}.{suffix}") for suffix in SUFFIXES}

    @property
    def _staged(self) -> dict[str, Path]:
        return {suffix: self._stage / suffix for suffix in SUFFIXES}

    def _discard(self) -> None:
        """Remove what is staged and what was put aside, but nothing else that is in the folder."""
        for suffix in SUFFIXES:
            (self._old / suffix).unlink(missing_ok=True)
        if self._old.is_dir():
            self._old.rmdir()
        for path in self._staged.values():
            path.unlink(missing_ok=True)

    def _clear(self) -> None:
        self._discard()
        (self._stage / "lock").unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another program keeps something in it
            self._stage.rmdir()
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


def _sync(path: Path) -> None:
    """Bring ``path`` to disk: after a power cut no final name may refer to lost content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
