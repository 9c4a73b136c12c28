"""Softmax temperature: a number, or a schedule."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from domain_pretrain.rules.options import Options, Positive, Steps


class Temperature(Options):
    """Softmax temperature: a number, or a way from ``start`` to ``end`` after the warm-up."""

    start: Positive
    end: Positive
    steps: Steps = Field(description="Optimizer steps from start to end.")
    shape: Literal["linear", "cosine"] = "linear"

    def at(self, step: int) -> float:
        """The temperature ``step`` optimizer steps after the end of the warm-up."""
        step = max(step, 0)
        if step >= self.steps:
            return self.end
        done = step / self.steps
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.end + (self.start - self.end) * left


def _constant(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError("a temperature must be greater than 0 and finite")
        return {"start": value, "end": value, "steps": 0}
    return value


TemperatureOption = Annotated[Temperature, BeforeValidator(_constant)]
CONSTANT_ONE = Temperature(start=1.0, end=1.0, steps=0)
