"""A corpus's files appear under their final names whole, or not at all."""

from __future__ import annotations

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


class CorpusWriter:
    """Writes ``PREFIX.bin``, ``.idx`` and ``.manifest.json`` through the folder ``PREFIX.tmp/``.

    A run that is killed leaves only that folder, which the next run for the same prefix clears.

    Args:
        prefix: path of the files without their suffixes.
        vocab_size: number of ids; decides the dtype as Megatron does.
        force: replace an existing corpus.

    Raises:
        PrepareError: megatron-core is missing, the corpus exists, or another run is writing it.
    """

    def __init__(self, prefix: Path, *, vocab_size: int, force: bool) -> None:
        try:
            with warnings.catch_warnings():
                # On the absence of fused optimizers, which matters to training and not here.
                warnings.simplefilter("ignore")
                from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
                from megatron.core.package_info import __version__ as megatron_core
        except ImportError as error:
            raise PrepareError(
                f"megatron-core cannot be imported ({error}); pip install "
                "'domain-pretrain[megatron]', or put your Megatron-LM checkout on PYTHONPATH"
            ) from error
        self.megatron_core: str = megatron_core
        self._build = IndexedDatasetBuilder
        self._prefix = prefix
        self._stage = Path(f"{prefix}.tmp")
        self._force = force
        self.dtype = np.dtype(DType.optimal_dtype(vocab_size))

    def __enter__(self) -> CorpusWriter:
        self._stage.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self._stage / "lock")
        # Only under the lock is it certain that nobody is about to create them.
        existing = [str(path) for path in self._final.values() if path.exists()]
        if existing and not self._force:
            self._clear()
            raise PrepareError(
                f"{', '.join(existing)}: exists already; choose another prefix, or --force"
            )
        self._builder: Any = self._build(str(self._staged["bin"]), dtype=self.dtype.type)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._builder.data_file.close()
        self._clear()

    def add(self, ids: np.ndarray, lengths: list[int]) -> None:
        """Append documents: their ``ids`` one after another, and how many each has."""
        start = 0
        for length in lengths:
            self._builder.add_document(ids[start : start + length], [length])
            start += length

    def commit(self, manifest: Manifest) -> None:
        """Move the files to their final names.

        Megatron takes ``.bin`` and ``.idx`` together as a dataset. The ``.idx`` is removed first
        and added last, so an index is never beside another corpus's tokens.
        """
        self._builder.finalize(str(self._staged["idx"]))
        self._staged["manifest.json"].write_text(manifest.to_json(), "utf-8")
        for path in self._staged.values():
            _sync(path)
        self._final["idx"].unlink(missing_ok=True)
        # Megatron's shuffled indices of the previous corpus: keyed by prefix, not by content.
        shutil.rmtree(self._prefix / "cache" / "GPTDataset_indices", ignore_errors=True)
        for suffix in ("bin", "manifest.json", "idx"):
            self._staged[suffix].replace(self._final[suffix])
        _sync(self._prefix.parent)

    @property
    def _final(self) -> dict[str, Path]:
        return {suffix: Path(f"{self._prefix}.{suffix}") for suffix in SUFFIXES}

    @property
    def _staged(self) -> dict[str, Path]:
        return {suffix: self._stage / suffix for suffix in SUFFIXES}

    def _clear(self) -> None:
        shutil.rmtree(self._stage, ignore_errors=True)
        self._lock.close()


SUFFIXES = ("bin", "manifest.json", "idx")


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
