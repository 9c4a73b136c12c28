"""The plan of a run: whole steps of each stage, samples of each prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from domain_pretrain.planning.before import Before
from domain_pretrain.planning.corpora import Source
from domain_pretrain.planning.section import PlanFile


@dataclass(frozen=True)
class StagePlan:
    """A stage of the run.

    Attributes:
        name: of it.
        asked: samples, as the budget says, before they are made whole steps.
        iterations: whole steps.
        samples: of these steps.
    """

    name: str
    asked: Fraction
    iterations: int
    samples: int


@dataclass(frozen=True)
class PrefixPlan:
    """What the run takes of a prefix.

    Attributes:
        source: the prefix, whose it is, and what it holds.
        stages: samples that each stage takes of it.
        epochs: how often the run reads it.
    """

    source: Source
    stages: tuple[int, ...]
    epochs: float

    @property
    def samples(self) -> int:
        """Of the whole run."""
        return sum(self.stages)


@dataclass(frozen=True)
class Plan:
    """Of a run.

    Attributes:
        file: that it was made from.
        stages: in order.
        prefixes: that are sampled, in the order of the domains.
        left_out: ``domain/part`` of what no stage names.
        warnings: a sentence each.
        before: the run that this one goes on from.
        read: what that has read, as :func:`.already_read.content_of` tells it.
    """

    file: PlanFile
    stages: tuple[StagePlan, ...]
    prefixes: tuple[PrefixPlan, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]
    before: Before | None = None
    read: Mapping[str, Any] | None = None

    @property
    def iterations(self) -> int:
        """Of all stages."""
        return sum(stage.iterations for stage in self.stages)

    @property
    def samples(self) -> int:
        """Of all stages."""
        return sum(stage.samples for stage in self.stages)
