"""``ramp``: shares that go in a straight line from one blend to another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field
from typing_extensions import Self

from domain_pretrain.rules.options import NonNegative, check_domains
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.observation import Array, Observation
from domain_pretrain.strategies.registry import SHARES, StrategyOptions, register


class RampOptions(StrategyOptions):
    """Options of ``ramp``.

    Attributes:
        start, end: relative shares by domain.
        until: part of the run's training samples after which the end is reached.
    """

    settles: ClassVar[Mapping[str, Any]] = SHARES
    needs: ClassVar[frozenset[str]] = frozenset({"progress"})

    start: dict[str, NonNegative]
    end: dict[str, NonNegative]
    until: Annotated[float, Field(gt=0, le=1)] = 1.0

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """Every domain needs both, and one of each must be above 0."""
        for key, given in (("start", self.start), ("end", self.end)):
            check_domains(f"{where}.{key}", given, names, complete=True)
        return self


@register("ramp", RampOptions)
def ramp(seen: Observation, state: State, options: RampOptions) -> tuple[Array, State]:
    """``w = (1 − t)·start + t·end``, both made to sum up to 1; t is the progress over ``until``.

    More of the old domain late is worth more than the same amount early, where the old one must be
    kept: its loss at the end is what counts, and what comes last is remembered best.
    """
    t = min(seen.course.progress / options.until, 1.0)
    start, end = (
        seen.weights(np.array([given[name] for name in seen.names])[seen.active])
        for given in (options.start, options.end)
    )
    return seen.weights(((1 - t) * start + t * end)[seen.active]), state
