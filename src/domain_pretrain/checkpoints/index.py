"""The index of a ``torch_dist`` checkpoint, ``.metadata``: which bytes of which file hold what."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.checkpoints.pickles import Reader, StandIn
from domain_pretrain.errors import ConfigError

INDEX = ".metadata"


@dataclass(frozen=True)
class Blob:
    """Bytes of a file: what one ``torch.save`` wrote."""

    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor: where it begins in the tensor and its extent, both by dimension."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    blob: Blob


@dataclass(frozen=True)
class Stored:
    """A tensor: ``bfloat16``, its shape, and the parts that make it up."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """What a checkpoint holds, by key: tensors, and other objects."""

    tensors: dict[str, Stored]
    objects: dict[str, Blob]

    def blobs(self) -> Iterator[Blob]:
        """All that has to be there."""
        yield from self.objects.values()
        for tensor in self.tensors.values():
            yield from (chunk.blob for chunk in tensor.chunks)


class ForeignNameError(pickle.UnpicklingError):
    """An index names what none of PyTorch's or Megatron's does."""


def read_index(checkpoint: Path) -> Index:
    """What lies in the files of a checkpoint's folder.

    Raises:
        ConfigError: it names what no index needs: it may be made to run code.
        Exception: of any kind, where it is damaged.
    """
    with open(checkpoint / INDEX, "rb") as file:
        try:
            found = _IndexReader(file).load().fields
        except ForeignNameError as error:
            raise ConfigError(
                f"{checkpoint / INDEX} names {str(error)[:100]}, which no checkpoint needs; to "
                "read it could run anything. Move the folder away to resume from an older "
                "checkpoint, and find out where this file comes from."
            ) from None
    blobs: dict[Any, Blob] = {}
    for entry, where in found["storage_data"].items():
        at = where.fields
        key = entry.fields["fqn"], entry.fields.get("offset")
        blobs[key] = Blob(at["relative_path"], at["offset"], at["length"])
    tensors, objects = {}, {}
    for key, described in found["state_dict_metadata"].items():
        if "chunks" not in described.fields:
            objects[key] = blobs[key, None]
            continue
        fields = described.fields
        chunks = [(c.fields["offsets"], c.fields["sizes"]) for c in fields["chunks"]]
        tensors[key] = Stored(
            _dtype_of(fields["properties"]),
            fields["size"],
            tuple(Chunk(at, sizes, blobs[key, at]) for at, sizes in chunks),
        )
    return Index(tensors, objects)


# What an index names, by module, from torch 2.1 to 2.14; Megatron leaves its ranks' plans there.
_CLASSES = {
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
    },
    "builtins": {"frozenset", "set"},
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # Python 3.13
}
_ENUMS = {
    "torch.distributed.checkpoint.metadata": {"_MEM_FORMAT_ENCODING"},
    "torch.distributed._shard.sharded_tensor.metadata": {"MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.planner": {"WriteItemType"},
}
_DTYPE = re.compile(r"bool|bfloat16|(float|complex|q?u?int|bits)\d+\w*")
_HOSTS = ("megatron", "mindspeed", "mindspeed_llm")


class _IndexReader(Reader):
    """A name that no index needs is refused: Megatron, which reads the file later, would call it.

    A dtype is its name, a ``torch.Size`` a tuple.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name in _ENUMS.get(module, ()):
            return _EnumStandIn
        if (module, name) == ("torch", "Size"):
            return tuple
        if name in _CLASSES.get(module, ()) or module.partition(".")[0] in _HOSTS:
            return StandIn
        if module == "torch" and _DTYPE.fullmatch(name):
            return name
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise ForeignNameError(f"{module}.{name}")


class _EnumStandIn(StandIn): ...


def _member(of: Any, name: Any) -> Any:
    """``getattr``, by which Python 3.11 names an enum's member."""
    if of is not _EnumStandIn:
        raise ForeignNameError("builtins.getattr")
    return _EnumStandIn()


def _dtype_of(properties: StandIn) -> str:
    """Of ``TensorProperties``, which pickles itself as a tuple that begins with the dtype."""
    state = properties.state
    return str(state["dtype"] if isinstance(state, dict) else state[0])
