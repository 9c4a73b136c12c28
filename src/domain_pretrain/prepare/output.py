"""Datasets in Megatron's format, written by Megatron's own builder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from domain_pretrain.prepare.encodings import UTF_8
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Manifest

SUFFIXES = ("bin", "channels.npy", "manifest.json", "idx")
"""In the order in which they appear. Megatron reads no dataset without an ``.idx``."""


class MegatronFormat:
    """The format for a vocabulary.

    Importing Megatron takes seconds, and so comes after all that may be refused.

    Args:
        vocab_size: number of ids; decides the dtype as Megatron does.

    Attributes:
        dtype: of the ids.
        version: of the megatron-core that writes.

    Raises:
        PrepareError: megatron-core is missing.
    """

    def __init__(self, vocab_size: int) -> None:
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
        self.version = ".".join(map(str, VERSION[:3])) + "".join(VERSION[3:])
        self.dtype: np.dtype[Any] = np.dtype(DType.optimal_dtype(vocab_size))
        self._builder = IndexedDatasetBuilder

    def builder(self, path: Path) -> Any:
        """Megatron's builder of the ``.bin`` at ``path``."""
        return self._builder(str(path), dtype=self.dtype.type)


class DatasetWriter:
    """Writes the files ``STEM`` + one of ``SUFFIXES``.

    Args:
        megatron: the format.
        stem: path of the files up to their suffixes.
    """

    def __init__(self, megatron: MegatronFormat, stem: str) -> None:
        self._path = {suffix: Path(stem + suffix) for suffix in SUFFIXES}
        self._path["bin"].parent.mkdir(parents=True, exist_ok=True)
        self._builder = megatron.builder(self._path["bin"])

    def add(self, ids: np.ndarray, lengths: list[int]) -> None:
        """Append documents: their ``ids`` one after another, and how many each has."""
        start = 0
        for length in lengths:
            self._builder.add_document(ids[start : start + length], [length])
            start += length

    def finish(self, manifest: Manifest, channels: np.ndarray | None) -> None:
        """Complete the files; ``channels``: the number of every document's, int16."""
        self._builder.finalize(str(self._path["idx"]))
        if channels is not None:
            np.save(self._path["channels.npy"], channels)
        self._path["manifest.json"].write_text(manifest.to_json(), UTF_8)

    def close(self) -> None:
        """Of a dataset that is given up, too."""
        self._builder.data_file.close()
