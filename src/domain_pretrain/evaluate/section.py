"""The config's ``evaluate`` section."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveInt

from domain_pretrain.section import Section


class Evaluating(Section):
    """What is measured of a model, besides the losses of its training."""

    samples: PositiveInt | None = Field(
        default=None,
        description="Of every domain's validation data, so many samples: the same at every "
        "evaluation, and once before the first step. Absent: what the host happens to read.",
    )
    probes: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="What the model is asked, by name of the probe, each with its options.",
    )
    every: PositiveInt = Field(
        default=1,
        description="The probes run at every n-th evaluation that the host makes on validation "
        "data, once before the first step, and at the end.",
    )
