"""Folders of ``.safetensors`` files: read a tensor at a time, written a tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch

from domain_pretrain.errors import ConfigError
from domain_pretrain.json_file import read_json

WHOLE = "model.safetensors"
INDEX = f"{WHOLE}.index.json"
SHARD_BYTES = 5_000_000_000  # as Hugging Face cuts them

# The names of the format (its README) for what weights can be.
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Described:
    """A tensor of a folder, from the header of its file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


class Folder:
    """The tensors of a folder; their files are mapped into memory, not read.

    Args:
        folder: with one file, or several and their index.

    Attributes:
        tensors: by name.

    Raises:
        ConfigError: there are none, a file is missing or broken, or a tensor is of a type that
            weights to train from do not have.
    """

    def __init__(self, folder: Path) -> None:
        self._open: dict[Path, Any] = {}
        self.tensors: dict[str, Described] = {}
        for file in weight_files(folder):
            opened = self._opened(file)
            for name in opened.keys():  # noqa: SIM118, it is no dict
                part = opened.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise ConfigError(
                        f"{file}: {name} is of type {part.get_dtype()}; training needs the model "
                        f"that is not quantized, of {', '.join(_DTYPES)}"
                    )
                dtype, shape = _DTYPES[part.get_dtype()], tuple(part.get_shape())
                self.tensors[name] = Described(file, dtype, shape)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, as it is stored."""
        return self._opened(self.tensors[name].file).get_tensor(name)

    def _opened(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = _safe_open()(file, "pt")
            except Exception as error:  # of a class of its own
                raise ConfigError(
                    f"{file} cannot be read: {str(error)[:200]}; download it again"
                ) from None
        return self._open[file]


def weight_files(folder: Path) -> list[Path]:
    """The files with the tensors of a folder, those that transformers reads.

    One whole file goes before the index, which a folder keeps when a model is saved in one file
    over its shards. What else lies there, as a consolidated.safetensors, does not count.

    Raises:
        ConfigError: there are none, one is missing, or nothing says which of them count.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if (folder / INDEX).is_file():
        index = read_json(folder / INDEX)
        try:
            files = [folder / name for name in sorted(set(index["weight_map"].values()))]
        except (TypeError, KeyError, AttributeError):
            raise ConfigError(
                f"{folder / INDEX} holds no weight_map from tensors to files; download it again"
            ) from None
    else:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) > 1:
            raise ConfigError(
                f"{folder} holds {len(files)} .safetensors files and no {INDEX}, which says what "
                "is in which: download it, too"
            )
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ConfigError(f"{folder} lacks {missing[0]}, which {INDEX} names; download it again")
    if not files:
        other = next((p.name for p in sorted(folder.glob("*.bin"))), None)
        found = f"only {other}" if other else "none"
        raise ConfigError(
            f"{folder} should hold .safetensors files, and holds {found}; transformers writes "
            "them: AutoModelForCausalLM.from_pretrained(…).save_pretrained(…)"
        )
    return files


def _safe_open() -> Callable[..., Any]:
    try:
        from safetensors import safe_open
    except ImportError:
        raise ConfigError(
            "reading a Hugging Face model needs safetensors: pip install 'domain-pretrain[hf]'"
        ) from None
    return safe_open


class Writer:
    """Writes the tensors of a model into files of at most :data:`SHARD_BYTES`, in their order.

    The format is a header that says where each tensor lies, and then their bytes. All is known
    before the first one: no tensor is kept.

    Args:
        folder: where the files go.
        shapes: of all tensors, in the order in which :meth:`write` will be given them.
        dtype: of all tensors.
    """

    def __init__(
        self, folder: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype
    ) -> None:
        self._folder, self._shapes, self._dtype = folder, shapes, dtype
        self._shards = list(_shards(shapes, dtype.itemsize))
        self._file: BinaryIO | None = None
        self._left: Iterator[str] = iter(())
        self._shard = -1

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor.

        Raises:
            AssertionError: it is another than the next, or of another shape.
        """
        expected = next(self._left, None)
        if expected is None:
            self._begin()
            expected = next(self._left)
        assert (name, tuple(tensor.shape)) == (expected, self._shapes[expected]), name
        assert self._file is not None
        data = tensor.to(self._dtype).contiguous()
        self._file.write(data.flatten().view(torch.uint8).numpy().data)

    def close(self) -> None:
        """End the last file; write the index, where there are several."""
        if self._file is not None:
            self._file.close()
        if len(self._shards) > 1:
            weight_map = {n: self._name(i) for i, shard in enumerate(self._shards) for n in shard}
            size = sum(map(prod, self._shapes.values())) * self._dtype.itemsize
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _begin(self) -> None:
        if self._file is not None:
            self._file.close()
        self._shard += 1
        names = self._shards[self._shard]
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in names:
            start, end = end, end + prod(self._shapes[name]) * self._dtype.itemsize
            header[name] = {
                "dtype": _NAMES[self._dtype],
                "shape": self._shapes[name],
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self._file = open(self._folder / self._name(self._shard), "wb")  # noqa: SIM115, see close
        self._file.write(len(text).to_bytes(8, "little") + text)
        self._left = iter(names)

    def _name(self, shard: int) -> str:
        if len(self._shards) == 1:
            return WHOLE
        return f"model-{shard + 1:05d}-of-{len(self._shards):05d}.safetensors"


def _shards(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> Iterable[list[str]]:
    shard: list[str] = []
    size = 0
    for name, shape in shapes.items():
        own = prod(shape) * itemsize
        if shard and size + own > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += own
    yield shard
