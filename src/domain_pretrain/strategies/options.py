"""Options of rules: pydantic models, and errors that name the key."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.types import Strict
from typing_extensions import Self

from domain_pretrain.errors import ConfigError

# Strict: pydantic would read YAML's `yes` as 1.0 and "1" as 1.
Positive = Annotated[float, Strict(), Field(gt=0)]
NonNegative = Annotated[float, Strict(), Field(ge=0)]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1)]
Steps = Annotated[int, Strict(), Field(ge=0)]

OptionsT = TypeVar("OptionsT", bound="Options")


class Options(BaseModel):
    """Options of a rule; without fields, a rule that has none. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """The options as they hold for these domains, once at start-up.

        Args:
            names: the domains.
            where: path of the options in the config, for messages.

        Raises:
            ConfigError: a domain that needs a value has none, or a name is not a domain.
        """
        return self


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


def parse(
    model: type[OptionsT], given: Mapping[str, Any], where: str, also: tuple[str, ...] = ()
) -> OptionsT:
    """Validate options.

    Args:
        model: what they must fit.
        given: as the user wrote them.
        where: the path of the mapping, for messages: ``reweight`` makes ``reweight.temperature``.
        also: keys of the same mapping that somebody else reads, for the suggestion.

    Raises:
        ConfigError: names every offending key, what it should be and what was given.
    """
    try:
        return model.model_validate(dict(given))
    except ValidationError as error:
        known = [*model.model_fields, *also]
        lines = [_describe(problem, where, known) for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None


def _describe(problem: Any, where: str, known: list[str]) -> str:
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden" and len(path) == 1:
        message = f"unknown key{nearest(path[0], known)} (known keys: {', '.join(known)})"
    else:
        message = f"{problem['msg']} (given: {problem['input']!r})"
    return f"{'.'.join([where, *path])}: {message}"


def nearest(name: str, known: list[str]) -> str:
    """``; did you mean 'x'?`` where a known name is close, else nothing."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_domains(
    key: str, given: Mapping[str, Any], names: tuple[str, ...], complete: bool
) -> None:
    """Check the keys of a mapping from domains.

    Raises:
        ConfigError: a key that is no domain; or, with ``complete``, a domain without a key.
    """
    for name in given:
        if name not in names:
            raise ConfigError(
                f"{key}: there is no domain {name!r}{nearest(name, list(names))} "
                f"(domains: {', '.join(names)})"
            )
    missing = [name for name in names if name not in given]
    if complete and missing:
        raise ConfigError(
            f"{key}: no value for domain {', '.join(map(repr, missing))}; every domain needs one"
        )
