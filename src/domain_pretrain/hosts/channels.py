"""The domain of every token of a sample, where the data has channels: beside what the host makes.

A sample is a window over documents that the host has put in a row: its index arrays say which. A
loss belongs to the document of the token that is predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from domain_pretrain.data.channels import DocumentDomains
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.flow.tap import DOMAIN_ID


def with_domains(built: Any, documents: Mapping[str, DocumentDomains]) -> Any:
    """What the host built, with ``domain_id`` in each sample.

    Args:
        built: a data set, a blend or list of them; or None.
        documents: data prefix, normalised → whose its documents are.

    Raises:
        UnsupportedError: a data set is not one of the host's windows over documents.
    """
    if built is None:
        return None
    if isinstance(built, (list, tuple)):
        return type(built)(with_domains(one, documents) for one in built)
    if hasattr(built, "datasets"):  # a blend, or a stream
        built.datasets = with_domains(list(built.datasets), documents)
        return built
    if not hasattr(built, "shuffle_index") or normalise(built.dataset_path) not in documents:
        raise UnsupportedError(
            f"the script reads its data by {type(built).__name__}, which does not tell the "
            "documents of a sample: take `channels: true` out of the config, or use Megatron's "
            "GPTDataset"
        )
    return WithDomains(built, documents[normalise(built.dataset_path)])


class WithDomains(torch.utils.data.Dataset[dict[str, Any]]):
    """A ``GPTDataset`` whose samples have ``domain_id``, int16 ``[s]``.

    Args:
        inner: the host's.
        documents: of its prefix.
    """

    def __init__(self, inner: Any, documents: DocumentDomains) -> None:
        self._inner, self._documents = inner, documents

    def __len__(self) -> int:
        return len(self._inner)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self._inner[index]
        # None: the host fills up a batch with a sample without loss.
        return {**sample, DOMAIN_ID: self._domains(index or 0, len(sample["tokens"]))}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not before there is an inner one, as while it is unpickled
            raise AttributeError(name)
        return getattr(self._inner, name)

    def _domains(self, index: int, length: int) -> NDArray[np.int16]:
        inner = self._inner
        extra = int(getattr(inner.config, "add_extra_token_to_sequence", True))
        window = inner.shuffle_index[index]
        (first, begin), (last, end) = inner.sample_index[window], inner.sample_index[window + 1]
        documents = np.asarray(inner.document_index[first : last + 1], np.int64)
        counts = np.asarray(inner.dataset.sequence_lengths[documents], np.int64)
        counts[-1] = end + extra
        counts[0] -= begin
        targets = np.repeat(self._documents.of(documents), counts)[1:]
        # A window at the end of the data may be short; what fills it up has no loss.
        return np.pad(targets, (0, length - len(targets)), mode="edge")
