"""Checkpoints of the format ``torch``, a file for each rank of the model: read only.

What tensor parallelism has cut is put together by the table's ``cut``; the layers are counted
over the stages, and with virtual stages over those first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from domain_pretrain.checkpoints.arguments import read_saved
from domain_pretrain.checkpoints.pickles import Reader as PickleReader
from domain_pretrain.checkpoints.ranks import rank_files
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.families import EMBEDDING, EXPERTS, VOCABULARY, Row

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.*)")


class _Tensors(PickleReader):
    """Builds tensors; whatever else is named has a stand-in."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return getattr(torch._utils, name)
        if (module, name) == ("collections", "OrderedDict"):
            return _Dict
        return super().find_class(module, name)


class _Dict(dict[str, Any]):
    """A state dict, which has attributes."""


_PICKLE = ModuleType("pickle")
_PICKLE.Unpickler = _Tensors  # type: ignore[attr-defined]


class Reader:
    """The rows of a checkpoint, one at a time; its files are mapped into memory.

    Args:
        checkpoint: the folder of one iteration.

    Raises:
        ConfigError: tensor parallelism has cut its experts otherwise than the rest.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._folder = checkpoint
        args = read_saved(checkpoint).args
        experts = args.get("num_experts") or 0
        if experts and (args.get("expert_tensor_parallel_size") or 1) != args.get(
            "tensor_model_parallel_size", 1
        ):
            raise ConfigError(
                f"{checkpoint}: experts that are cut otherwise than the rest, in the format torch"
            )
        # By name: the part that each rank of TP has.
        self._parts: dict[str, dict[int, torch.Tensor]] = {}
        stages = (args.get("pipeline_model_parallel_size") or 1) > 1
        for tp, name, tensor in _tensors(checkpoint, stages, experts):
            self._parts.setdefault(name, {})[tp] = tensor

    def rows(self, name: str) -> int:
        """Of the vocabulary, with padding."""
        return sum(part.shape[0] for part in self._find((name,)))

    def dtype(self) -> torch.dtype:
        """Of the embedding, and of all weights."""
        return self._find((EMBEDDING,))[0].dtype

    def check(self, row: Row, layer: int | None = None, expert: int | None = None) -> None:
        """Whether a row is there, of the model's shape; a vocabulary may be padded.

        Raises:
            ConfigError: it is not.
        """
        # Of shapes alone: nothing is read.
        parts = [part.to("meta") for part in self._find(row.names, layer, expert)]
        row.check(self._folder, tuple(_whole(row, parts).shape))

    def read(self, row: Row, layer: int | None = None, expert: int | None = None) -> torch.Tensor:
        """A row; of a padded vocabulary, without the padding."""
        whole = _whole(row, self._find(row.names, layer, expert))
        return whole[: row.shape[0]] if row.names[0] in VOCABULARY else whole

    def _find(
        self, names: tuple[str, ...], layer: int | None = None, expert: int | None = None
    ) -> list[torch.Tensor]:
        """The part of each rank of TP, in order."""
        prefix = "" if layer is None else f"decoder.layers.{layer}."
        for name in names:
            for key in _names(name, expert):
                if prefix + key in self._parts:
                    return [part for _, part in sorted(self._parts[prefix + key].items())]
        raise ConfigError(
            f"{self._folder} holds no {prefix}{names[0]}: its model is not one that its "
            "arguments and the table of its family describe"
        )


def _whole(row: Row, parts: list[torch.Tensor]) -> torch.Tensor:
    """What tensor parallelism has cut, put together; with all padding."""
    if row.cut is None:
        return parts[0]
    if len(row.parts) > 1 and row.groups == 1:  # gate and up, each of them cut
        halves = [part.chunk(len(row.parts)) for part in parts]
        return torch.cat([half for both in zip(*halves, strict=True) for half in both])
    return torch.cat(parts, row.cut)


def _names(name: str, expert: int | None) -> Iterator[str]:
    """A row as the layer spec's modules are called: experts one by one, or in one module."""
    if expert is None:
        yield name
        return
    inner = name.removeprefix(EXPERTS)
    yield f"mlp.experts.local_experts.{expert}.{inner}"
    yield f"mlp.experts.{inner}{expert}"


def _tensors(checkpoint: Path, stages: bool, count: int) -> Iterator[tuple[int, str, torch.Tensor]]:
    """Every tensor of every rank: its rank of TP, and its name with the layer's number."""
    ranks: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for path in rank_files(checkpoint):
        numbers = [int(word) for word in path.parent.name.removeprefix("mp_rank_").split("_")]
        if not stages:  # the second one, where there is one, is of expert parallelism
            numbers.insert(1, 0)
        tp, pp, ep = (*numbers, 0, 0)[:3]
        state = torch.load(
            path, map_location="cpu", mmap=True, weights_only=False, pickle_module=_PICKLE
        )
        virtual = sorted(
            (k for k in state if re.fullmatch(r"model\d+", k)), key=lambda k: int(k[5:])
        )
        chunks = [state[key] for key in virtual or ["model"]]
        ranks[tp, pp, ep] = chunks
    # How many layers each part of the pipeline has, in the order of the model.
    first: dict[tuple[int, int], int] = {}
    begin = 0
    lowest = {pp: chunks for (tp, pp, ep), chunks in sorted(ranks.items(), reverse=True)}
    for chunk in range(max(len(chunks) for chunks in lowest.values())):
        for pp in sorted(lowest):
            first[pp, chunk] = begin
            begin += len({m[1] for m in map(_LAYER.fullmatch, lowest[pp][chunk]) if m})
    experts = max((ep for _, _, ep in ranks), default=0) + 1
    for (tp, pp, ep), chunks in ranks.items():
        for number, chunk_state in enumerate(chunks):
            for name, tensor in chunk_state.items():
                if isinstance(tensor, torch.Tensor):
                    yield tp, _global(name, first[pp, number], ep, experts, count), tensor


def _global(name: str, first: int, ep: int, ranks: int, count: int) -> str:
    """The name with the numbers of layer and expert in the whole model."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return name
    inner = match[2]
    if count and ranks > 1:
        offset = ep * (count // ranks)
        inner = re.sub(
            r"(?<=local_experts\.)\d+|(?<=linear_fc[12]\.weight)\d+",
            lambda number: str(int(number[0]) + offset),
            inner,
        )
    return f"decoder.layers.{int(match[1]) + first}.{inner}"
