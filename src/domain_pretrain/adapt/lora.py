"""The config's ``adapt.lora`` section: which layers get an adapter, and of what size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from domain_pretrain.section import Section

SAVED = "domain_lora"  # among the arguments that a run with adapters saves

Target = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]
ALL: tuple[Target, ...] = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
_WHERE = {"linear_qkv": "self_attention", "linear_proj": "self_attention"}  # else mlp


class Lora(Section):
    """Adapters of low rank beside linear layers: ``y = W·x + alpha/rank · B·A·x``, with W frozen.

    Hu et al., LoRA (arXiv:2106.09685). B begins as zero, so the first step's model is the base.
    """

    rank: PositiveInt = Field(default=32, description="Rows of A, and columns of B.")
    alpha: PositiveFloat = Field(
        default=32.0, description="What B·A is multiplied by, times the rank."
    )
    dropout: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Of what goes into A, in training."
    )
    targets: tuple[Target, ...] = Field(
        default=ALL,
        min_length=1,
        description="The layers that get one, by Megatron's names: `linear_qkv` and `linear_proj` "
        "of attention, `linear_fc1` and `linear_fc2` of the MLP.",
    )
    experts: bool = Field(
        default=False,
        description="Whether `linear_fc1` and `linear_fc2` are also those of every expert, each "
        "with an adapter of its own; else of dense MLPs alone.",
    )
    compare_base: bool = Field(
        default=True,
        description="With `evaluate.samples`: measure the base, adapters off, on the same samples, "
        "once, and publish how far each domain is above it, `above-base`.",
    )

    @field_validator("targets")
    @classmethod
    def _once(cls, given: tuple[Target, ...]) -> tuple[Target, ...]:
        return tuple(name for name in ALL if name in given)

    @property
    def scale(self) -> float:
        """What B·A is multiplied by."""
        return self.alpha / self.rank

    def patterns(self) -> Iterator[str]:
        """Of the modules' dotted names; ``*`` stands for anything."""
        for name in self.targets:
            yield f"*.{_WHERE.get(name, 'mlp')}.{name}"
            if self.experts and name not in _WHERE:
                yield f"*.mlp.experts.*{name}"

    def saved(self) -> dict[str, Any]:
        """What a checkpoint has to say of its adapters: they are not the same model without it."""
        return self.model_dump(mode="json", exclude={"dropout", "compare_base"})
