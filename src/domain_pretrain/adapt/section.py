"""The config's ``adapt`` section."""

from __future__ import annotations

from pydantic import Field

from domain_pretrain.adapt.experts import Experts
from domain_pretrain.adapt.lora import Lora
from domain_pretrain.section import Section


class Adapting(Section):
    """What training does besides plain continued pretraining."""

    lora: Lora | None = Field(
        default=None, description="Train adapters of low rank beside the base model; absent: all."
    )
    experts: Experts = Field(
        default=Experts(), description="What is counted of, and asked of, a mixture of experts."
    )
