"""The config's ``watch`` section."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from domain_pretrain.section import Section


class Watching(Section):
    """What is looked for while training."""

    alarms: dict[str, Literal[False] | dict[str, Any]] = Field(
        default_factory=dict,
        description="Alarms by name, each with its options; `false` turns one off "
        "(docs/alarms.md).",
    )
    command: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list,
        description="A program and its arguments, started for each finding, which it reads as "
        "JSON on its standard input.",
    )
    on_spike: Literal["log", "stop", "rollback"] = Field(
        default="log",
        description="What follows where a domain's loss jumps up: nothing but a line, the end, or "
        "the way back and a cut.",
    )
    rollbacks: Annotated[int, Field(gt=0)] = Field(
        default=3, description="So many at most, in the whole run; the next spike stops it."
    )

    @model_validator(mode="after")
    def _finds_what_it_acts_on(self) -> Watching:
        if self.on_spike != "log" and self.alarms.get("spike") is False:
            raise PydanticCustomError(
                "on_spike",
                "on_spike: {action} waits for the alarm spike, which alarms turn off: leave "
                "spike: false out, or on_spike",
                {"action": self.on_spike},
            )
        return self
