"""The adapters of a checkpoint, and the weights with them merged in: ``W + alpha/rank · B·A``.

megatron.bridge.peft gives a layer that TP divides by rows (qkv, fc1) an A that is divided by its
rank and a B that is divided as the layer is; a layer that it divides by columns (proj, fc2) an A
divided as the layer is, and a B divided by rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from domain_pretrain.adapt.lora import SAVED, Lora
from domain_pretrain.huggingface.families import EXPERTS, Place, Row


def saved_lora(args: Mapping[str, Any]) -> Lora | None:
    """Of the arguments of a checkpoint; None: its model has no adapters."""
    saved = args.get(SAVED)
    return None if saved is None else Lora.model_validate(saved)


@dataclass(frozen=True)
class Adapter:
    """The two tensors beside a row of the table.

    Attributes:
        a: ``[rank, in]``.
        b: ``[out, rank]``, its rows in the order of the layer's own.
        scale: of their product.
    """

    a: Row
    b: Row
    scale: float

    @classmethod
    def of(cls, row: Row, options: Lora) -> Adapter | None:
        """None: the row has none, as it is of a layer that got none, or is no layer's weight."""
        layer, _, kind = row.names[0].rpartition(".")
        if kind != "weight" or layer.rpartition(".")[2] not in options.targets:
            return None
        if row.names[0].startswith(EXPERTS) and not options.experts:
            return None
        rank, width = options.rank, row.shape[1]
        a = Row((f"{layer}.adapter.linear_in.weight",), (("a", (rank, width)),), cut=row.cut)
        b = Row(
            (f"{layer}.adapter.linear_out.weight",),
            tuple((name, (shape[0], rank)) for name, shape in row.parts),
            row.groups,
            cut=0,
        )
        return cls(a, b, options.scale)

    def merge(self, weight: torch.Tensor, read: Callable[[Row], torch.Tensor]) -> torch.Tensor:
        """The layer's weight and its adapter in one, of the weight's dtype; added up in float64."""
        product = read(self.b).double() @ read(self.a).double()
        return (weight.double() + self.scale * product).to(weight.dtype)


def adapter_rows(places: list[Place], options: Lora | None) -> list[Place]:
    """What a checkpoint with these options must hold beside the rows of its model."""
    found = []
    for row, number, each in places:
        adapter = None if options is None else Adapter.of(row, options)
        if adapter is not None:
            found += [(adapter.a, number, each), (adapter.b, number, each)]
    return found
