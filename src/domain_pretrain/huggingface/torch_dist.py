"""Checkpoints of the format ``torch_dist``, written and read a tensor at a time.

It is PyTorch's (``torch.distributed.checkpoint``): files of what ``torch.save`` wrote, and an
index of which part of which tensor lies where. Megatron adds ``metadata.json``, by which it knows
the format, and its arguments, in ``common.pt`` (core 0.19 and later write them as an entry of the
checkpoint, and read either). Equal layers lie in one tensor with a leading dimension over them,
``decoder.layers.…``, else each has keys of its own, ``decoder.layers.N.…``; experts in one with a
dimension over them (transformer_block.py and moe/experts.py, ``sharded_state_dict``). TP and PP
leave no trace: a run cuts out what it needs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from domain_pretrain.checkpoints.index import INDEX, Chunk, Stored, read_index
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.families import EMBEDDING, EXPERTS, Row
from domain_pretrain.huggingface.model import Model

_FILE = "__0_0.distcp"
_LAYERS = "decoder.layers."


class Key:
    """Where a row lies: the key of the tensor, its whole shape, and the place in it.

    Args:
        name: of the row.
        model: whose row it is.
        layer: counted from 0; None: of none.
        expert: counted from 0; None: of none.
        shape: of the row.
    """

    def __init__(
        self, name: str, model: Model, layer: int | None, expert: int | None, shape: tuple[int, ...]
    ) -> None:
        self.key, leading, place = name, [], []
        if layer is not None:
            self.key = f"{_LAYERS}{name}" if model.uniform else f"{_LAYERS}{layer}.{name}"
            if model.uniform:
                leading, place = [model.layers], [layer]
        if expert is not None:
            assert model.experts is not None
            leading, place = [*leading, model.experts.count], [*place, expert]
        self.shape = (*leading, *shape)
        self.offsets = (*place, *(0 for _ in shape))
        self.sizes = (*(1 for _ in place), *shape)


class Writer:
    """Writes one checkpoint; what is written is not kept.

    Args:
        folder: of the iteration; made.
        model: which it holds.
        dtype: of its weights.
    """

    def __init__(self, folder: Path, model: Model, dtype: torch.dtype) -> None:
        folder.mkdir(parents=True)
        self._folder, self._model, self._dtype = folder, model, dtype
        self._file: BinaryIO = open(folder / _FILE, "wb")  # noqa: SIM115, see close
        self._described: dict[str, Any] = {}
        self._stored: dict[MetadataIndex, _StorageInfo] = {}

    def write(
        self, row: Row, tensor: torch.Tensor, layer: int | None = None, expert: int | None = None
    ) -> None:
        """A row, under all its names: which of them the run asks for depends on its layer spec."""
        where = self._append(tensor.to(self._dtype).reshape(-1), tensor.shape, row, layer, expert)
        for name in row.names:
            self._describe(Key(name, self._model, layer, expert, row.shape), where)

    def _append(
        self,
        flat: torch.Tensor,
        shape: torch.Size,
        row: Row,
        layer: int | None,
        expert: int | None,
    ) -> _StorageInfo:
        assert tuple(shape) == row.shape, row.names
        sizes = Key(row.names[0], self._model, layer, expert, row.shape).sizes
        return self._save(flat.view(sizes))

    def _save(self, what: Any) -> _StorageInfo:
        start = self._file.tell()
        torch.save(what, self._file)
        return _StorageInfo(_FILE, start, self._file.tell() - start)

    def _describe(self, key: Key, where: _StorageInfo) -> None:
        described = self._described.setdefault(
            key.key,
            TensorStorageMetadata(
                TensorProperties(dtype=self._dtype), torch.Size(key.shape), chunks=[]
            ),
        )
        offsets = torch.Size(key.offsets)
        described.chunks.append(ChunkStorageMetadata(offsets, torch.Size(key.sizes)))
        self._stored[MetadataIndex(key.key, offsets, len(described.chunks) - 1)] = where

    def close(self, args: Mapping[str, Any]) -> None:
        """Write the index and the arguments; ``metadata.json`` comes last, as Megatron does it."""
        nothing = self._save([None])
        for key in _extra_states(self._model):
            self._described[key] = BytesStorageMetadata()
            self._stored[MetadataIndex(key)] = nothing
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        common = {
            "args": argparse.Namespace(**args),
            "checkpoint_version": 3.0,
            "iteration": 0,
        }
        torch.save(common, self._folder / "common.pt")
        index = Metadata(self._described, storage_data=self._stored)
        (self._folder / INDEX).write_bytes(pickle.dumps(index))
        config = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        (self._folder / "metadata.json").write_text(json.dumps(config), encoding="utf-8")


def _extra_states(model: Model) -> Iterator[str]:
    """Keys of what modules keep beside their weights, such as FP8 scales: here nothing.

    They are asked for, and an absent one is an error under the default --dist-ckpt-strictness,
    assume_ok_unexpected: the plan of torch.distributed.checkpoint misses it. Which of them depends
    on the layer spec (Transformer Engine's norms and attention have one, the local ones do not);
    one that is there and is not asked for is no matter. ``[None]`` is what Megatron saves of a
    module that has nothing, and what every set_extra_state takes as nothing.
    """
    modules = (
        *("input_layernorm", "pre_mlp_layernorm", "mlp.linear_fc1", "mlp.linear_fc2"),
        *("self_attention.linear_qkv", "self_attention.linear_proj"),
        *("self_attention.core_attention", "self_attention.q_layernorm"),
        "self_attention.k_layernorm",
    )
    yield "decoder.final_layernorm._extra_state/shard_0_1"
    for layer in range(model.layers):
        # transformer/utils.py, _get_extra_state_offsets: without any, a shard 0 of 1.
        own, place, extent = "", [layer], [model.layers]
        if not model.uniform:
            own, place, extent = f"{layer}.", [], []
        for module in modules:
            yield _shard(f"{_LAYERS}{own}{module}", place or [0], extent or [1])
        if model.experts is not None and model.is_sparse(layer):
            count = model.experts.count
            for expert in range(count):
                for module in ("linear_fc1", "linear_fc2"):
                    key = f"{_LAYERS}{own}{EXPERTS}{module}"
                    yield _shard(key, [*place, expert], [*extent, count])


def _shard(module: str, place: list[int], extent: list[int]) -> str:
    """``ShardedObject.unique_key`` of dist_checkpointing/mapping.py."""
    dotted = ".".join(map(str, place)), ".".join(map(str, extent))
    return f"{module}._extra_state/shard_{dotted[0]}_{dotted[1]}"


class Reader:
    """The rows of a checkpoint, one at a time.

    Args:
        checkpoint: the folder of one iteration.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._folder = checkpoint
        self._tensors = read_index(checkpoint).tensors

    def rows(self, name: str) -> int:
        """Of the vocabulary, with padding."""
        return self._find((name,), None, None)[0].shape[0]

    def dtype(self) -> torch.dtype:
        """Of the embedding, and of all weights."""
        stored = self._find((EMBEDDING,), None, None)[0]
        return getattr(torch, stored.dtype)

    def check(self, row: Row, layer: int | None = None, expert: int | None = None) -> None:
        """Whether a row is there, of the model's shape; a vocabulary may be padded.

        Raises:
            ConfigError: it is not.
        """
        stored, place = self._find(row.names, layer, expert)
        row.check(self._folder, stored.shape[len(place) :])

    def read(self, row: Row, layer: int | None = None, expert: int | None = None) -> torch.Tensor:
        """A row; of a padded vocabulary, without the padding."""
        stored, place = self._find(row.names, layer, expert)
        low = (*place, *(0 for _ in row.shape))
        whole = torch.empty(row.shape, dtype=getattr(torch, stored.dtype))
        for chunk in stored.chunks:
            self._copy(chunk, low, whole, len(place))
        return whole

    def _copy(self, chunk: Chunk, low: tuple[int, ...], whole: torch.Tensor, leading: int) -> None:
        """What a stored part and the row have in common; the row is one of each leading index."""
        high = (*(n + 1 for n in low[:leading]), *whole.shape)
        begin = [max(a, b) for a, b in zip(low, chunk.offsets, strict=True)]
        ends = [o + s for o, s in zip(chunk.offsets, chunk.sizes, strict=True)]
        end = [min(a, b) for a, b in zip(high, ends, strict=True)]
        if any(b >= e for b, e in zip(begin, end, strict=True)):
            return
        part = self._load(chunk)
        spans = zip(begin, end, chunk.offsets, strict=True)
        part = part[tuple(slice(b - o, e - o) for b, e, o in spans)]
        part = part.reshape(part.shape[leading:])
        target = whole[
            tuple(slice(b, e) for b, e in zip(begin[leading:], end[leading:], strict=True))
        ]
        target.copy_(part)

    def _load(self, chunk: Chunk) -> torch.Tensor:
        with open(self._folder / chunk.blob.file, "rb") as file:
            file.seek(chunk.blob.start)
            data = io.BytesIO(file.read(chunk.blob.length))
        part = torch.load(data, map_location="cpu", weights_only=True)
        return part.reshape(chunk.sizes)

    def _find(
        self, names: tuple[str, ...], layer: int | None, expert: int | None
    ) -> tuple[Stored, tuple[int, ...]]:
        """A tensor, and the leading indices at which it has the row."""
        for name in names:
            for key, place in _places(name, layer, expert):
                if key in self._tensors:
                    return self._tensors[key], place
        at = "" if layer is None else f" of layer {layer}"
        raise ConfigError(
            f"{self._folder} holds no {names[0]}{at}: its model is not one that its arguments and "
            "the table of its family describe, or it is of a later Megatron"
        )


def _places(
    name: str, layer: int | None, expert: int | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Where versions of Megatron keep a row: stacked or on its own, by layer and by expert."""
    layers: list[tuple[str, tuple[int, ...]]] = [("", ())]
    if layer is not None:
        layers = [(_LAYERS, (layer,)), (f"{_LAYERS}{layer}.", ())]
    for prefix, place in layers:
        if expert is None:
            yield prefix + name, place
        else:
            inner = name.removeprefix(EXPERTS)
            yield prefix + name, (*place, expert)
            yield f"{prefix}{EXPERTS}{expert}.{inner}", place
