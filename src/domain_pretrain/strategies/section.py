"""The config's ``reweight`` section: one model per scope, each with the keys that act in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from domain_pretrain.rules.options import Positive
from domain_pretrain.section import parse
from domain_pretrain.strategies.multipliers import MultiplierOptions, Objective, WarmupSteps
from domain_pretrain.strategies.registry import available
from domain_pretrain.strategies.shapes import SHAPES, ShapeOptions
from domain_pretrain.suggest import did_you_mean


def _known_scope(scope: Any) -> Any:
    if scope != "global_batch":  # `microbatch` has a model of its own
        raise PydanticCustomError("scope", "Input should be 'global_batch' or 'microbatch'")
    return scope


def _whole_domains(unit: str) -> str:
    if unit == "sample":
        raise PydanticCustomError("unit", "sample needs scope: microbatch")
    return unit


def _has_a_shape(strategy: str) -> str:
    if strategy in SHAPES:
        return strategy
    if strategy in available():
        why = "needs the losses of whole steps."
    else:
        why = f"unknown strategy{did_you_mean(strategy, SHAPES) or '.'}"
    raise PydanticCustomError(
        "strategy",
        "{why} With scope: microbatch use one of {shapes}",
        {"why": why, "shapes": ", ".join(SHAPES)},
    )


class StepRule(MultiplierOptions):
    """A strategy that is asked once a step; further keys are its own options."""

    model_config = ConfigDict(extra="allow")

    strategy: str = Field(default="linupper", description="The rule (docs/strategies.md).")
    ema_tokens: Positive | None = Field(
        default=None,
        description="Horizon of the loss estimates, in tokens of a domain; none: 16 steps' worth.",
    )


class LaggedReweight(StepRule):
    """Scope ``global_batch``: weights of all steps so far, in force in the next one."""

    scope: Annotated[Literal["global_batch"], BeforeValidator(_known_scope)] = Field(
        default="global_batch",
        description="What the weights are made of: all steps so far, or this very microbatch.",
    )
    unit: Annotated[Literal["domain", "sample"], AfterValidator(_whole_domains)] = Field(
        default="domain", description="What is weighed; `sample` needs `scope: microbatch`."
    )


class WithinReweight(ShapeOptions):
    """Scope ``microbatch``: weights of this very microbatch, made within its forward pass."""

    idle: ClassVar[Mapping[str, str]] = dict.fromkeys(
        [*LaggedReweight.model_fields, *LaggedReweight.renamed], "with scope: microbatch"
    )

    scope: Literal["microbatch"]
    unit: Literal["domain", "sample"] = "domain"
    strategy: Annotated[str, AfterValidator(_has_a_shape)] = "linupper"
    objective: Objective = "domain_mean"
    warmup_steps: WarmupSteps = 200

    @field_validator("objective", mode="before")  # of a given one, not of the default
    @classmethod
    def _samples_count_the_same(cls, objective: Any, info: ValidationInfo) -> Any:
        if info.data.get("unit") == "sample":
            raise PydanticCustomError(
                "idle", "has no effect with scope: microbatch and unit: sample: take it out"
            )
        return objective


def _model(given: Any) -> type[LaggedReweight | WithinReweight]:
    """What takes the section; without a scope, or with one that does not exist, the default."""
    scope = given.get("scope") if isinstance(given, Mapping) else getattr(given, "scope", None)
    return WithinReweight if scope == "microbatch" else LaggedReweight


Reweight = Annotated[
    Annotated[LaggedReweight, Tag("LaggedReweight")]
    | Annotated[WithinReweight, Tag("WithinReweight")],
    Discriminator(lambda given: _model(given).__name__),
]


def parse_reweight(given: Mapping[str, Any]) -> LaggedReweight | WithinReweight:
    """The section as the user wrote it.

    Raises:
        ConfigError: names every offending key.
    """
    return parse(_model(given), dict(given), "reweight")
