"""The config's ``channel_loss`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from domain_pretrain.section import Section
from domain_pretrain.stats import Average


class ChannelLoss(Section):
    """How a domain's loss is summed and averaged."""

    average: Average = Field(
        default="token",
        description="Mean over tokens, or over samples (each sample's own token mean).",
    )
    kernels: Literal["auto", "reference", "cuda"] = Field(
        default="auto",
        description="What sums: CUDA kernels, or plain torch; `auto`: what the device can run.",
    )
