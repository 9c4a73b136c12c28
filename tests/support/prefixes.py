"""Data prefixes without Megatron: files as its ``IndexedDataset`` has them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from domain_pretrain.data.index import DTYPES, MAGIC, VERSION


def write_prefix(prefix: str | Path, lengths: Sequence[int], *, dtype: str = "uint16") -> None:
    """``PREFIX.idx`` and ``PREFIX.bin`` of documents with so many tokens each, all of them zero."""
    Path(prefix).parent.mkdir(parents=True, exist_ok=True)
    (code,) = (code for code, name in DTYPES.items() if name == dtype)
    sizes = np.array(lengths, np.int32)
    item = np.dtype(dtype).itemsize
    offsets = np.concatenate([[0], np.cumsum(sizes[:-1], dtype=np.int64)])[: len(sizes)] * item
    Path(f"{prefix}.idx").write_bytes(
        struct.pack("<9sQBQQ", MAGIC, VERSION, code, len(sizes), len(sizes) + 1)
        + sizes.tobytes()
        + offsets.astype(np.int64).tobytes()
        + np.arange(len(sizes) + 1, dtype=np.int64).tobytes()
    )
    with open(f"{prefix}.bin", "wb") as file:
        file.truncate(item * int(sizes.sum(dtype=np.int64)))  # sparse: it may be large
