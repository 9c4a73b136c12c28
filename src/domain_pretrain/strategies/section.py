"""The config's ``reweight`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from domain_pretrain.section import parse
from domain_pretrain.strategies.reweighter import ReweightOptions
from domain_pretrain.strategies.shapes import SHAPES, ShapeOptions


class Reweight(ReweightOptions):
    """How the domains' losses steer the training; further keys are the strategy's own options."""

    scope: Literal["global_batch", "microbatch"] = Field(
        "global_batch",
        description="What the weights are made of: all steps so far, or this very microbatch.",
    )
    unit: Literal["domain", "sample"] = Field(
        "domain",
        description="What is weighed; `sample` needs `scope: microbatch`.",
    )

    @model_validator(mode="after")
    def _check_scope(self) -> Reweight:
        if self.scope == "global_batch":
            if self.unit == "sample":
                raise PydanticCustomError("unit", "unit: sample needs scope: microbatch")
            return self
        idle = self.model_fields_set & {"uniform_part", "clip", "ema_tokens"}
        if self.unit == "sample":
            idle |= self.model_fields_set & {"objective"}
        if idle:
            raise PydanticCustomError(
                "idle_key",
                "{keys} has no effect with scope: microbatch{unit}: take it out",
                {
                    "keys": ", ".join(sorted(idle)),
                    "unit": " and unit: sample" if self.unit == "sample" else "",
                },
            )
        if self.strategy not in SHAPES:
            raise PydanticCustomError(
                "strategy",
                "strategy {strategy} needs the losses of whole steps; with scope: microbatch use "
                "one of {known}",
                {"strategy": repr(self.strategy), "known": ", ".join(SHAPES)},
            )
        return self

    def curve(self) -> ShapeOptions:
        """The options of a strategy that works within a microbatch."""
        known = tuple(type(self).model_fields)
        return parse(ShapeOptions, self.model_extra or {}, "reweight", known)
