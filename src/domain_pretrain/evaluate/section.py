"""The config's ``evaluate`` section."""

from __future__ import annotations

from pydantic import Field, PositiveInt

from domain_pretrain.section import Section


class Evaluating(Section):
    """What is measured of a model, besides the losses of its training."""

    samples: PositiveInt | None = Field(
        default=None,
        description="Of every domain's validation data, so many samples: the same at every "
        "evaluation, and once before the first step. Absent: what the host happens to read.",
    )
