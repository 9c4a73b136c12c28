"""The config's ``mix`` section: a blend that changes on the way, and cuts in the stream."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt, model_validator
from pydantic_core import PydanticCustomError

from domain_pretrain.data.documents import CONTENT
from domain_pretrain.data.mix.apportion import Shape
from domain_pretrain.data.mix.decide import LARGEST_BLOCK
from domain_pretrain.errors import shorten
from domain_pretrain.section import Section
from domain_pretrain.strategies.section import StepRule

Weights = dict[str, float | dict[str, float]]

LENGTHS = ("samples", "tokens", "share")


def _check_weights(given: dict[str, Any]) -> Weights:
    """Numbers ≥ 0, one of them above; a domain's, or those of its prefixes."""
    total = 0.0
    for name, value in given.items():
        inner = value if isinstance(value, dict) else {"": value}
        for prefix, number in inner.items():
            if not _is_weight(number):
                place = f"{name}.{prefix}" if prefix else name
                raise PydanticCustomError(
                    "weight",
                    "the weight of {place} should be a number ≥ 0, or a mapping of the domain's "
                    "prefixes to such numbers, not {given}",
                    {"place": shorten(place, 80), "given": shorten(repr(number), 80)},
                )
            total += number
    if not 0 < total < math.inf:
        why = "no domain has a weight above 0" if not total else "the weights are too large to add"
        raise PydanticCustomError("weight", "{why}", {"why": why})
    return given


def _is_weight(number: Any) -> bool:
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        return False
    return 0 <= number <= sys.float_info.max


class Stage(Section):
    """A part of the run with weights of its own."""

    samples: PositiveInt | None = Field(default=None, description="Length of the stage in samples.")
    tokens: PositiveInt | None = Field(
        default=None, description="Length in tokens: samples times the sequence length."
    )
    share: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="Length as a part of the run's training samples."
    )
    weights: Annotated[dict[str, Any], AfterValidator(_check_weights)] = Field(
        description="Relative weights by domain, or of a domain's prefixes by prefix; what is not "
        "named is not sampled in the stage."
    )
    shape: Shape = Field(
        default="constant",
        description="`constant`: these weights from the start; otherwise the way to them, over "
        "the stage, from those of the stage before.",
    )

    @model_validator(mode="after")
    def _has_one_length(self) -> Stage:
        given = [name for name in LENGTHS if getattr(self, name) is not None]
        if len(given) > 1:
            raise PydanticCustomError(
                "length",
                "{given} are two lengths of one stage: give one of {known}",
                {"given": " and ".join(given), "known": ", ".join(LENGTHS)},
            )
        return self


def _check_cut(cut: tuple[int, int]) -> tuple[int, int]:
    first, stop = cut
    if not 0 <= first < stop:
        raise PydanticCustomError(
            "cut", "must be [first, stop] with 0 <= first < stop; stop itself is not skipped"
        )
    return cut


_Documents = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
_Content = Annotated[str, Field(pattern=rf"^{CONTENT.pattern}$")]


class Cut(Section):
    """Samples that the run does not read: by position, or by what is in them."""

    samples: Annotated[tuple[int, int], AfterValidator(_check_cut)] | None = Field(
        default=None,
        description="`[first, stop]`: positions in the stream, of which `stop` is read again.",
    )
    documents: _Documents | None = Field(
        default=None,
        description="Documents, by their numbers in `prefix`, from 0: every sample that holds a "
        "token of one.",
    )
    prefix: str | None = Field(default=None, description="Data prefix of `documents`.")
    content: Annotated[list[_Content], Field(min_length=1)] | None = Field(
        default=None,
        description="The same by what the documents hold, as `trace --json` tells it, wherever "
        "they are.",
    )

    @model_validator(mode="after")
    def _says_what(self) -> Cut:
        given = [one for one in (self.samples, self.documents, self.content) if one is not None]
        if len(given) != 1:
            raise PydanticCustomError(
                "cut", "give one of samples, documents (with prefix) and content"
            )
        if (self.prefix is None) != (self.documents is None):
            raise PydanticCustomError(
                "cut", "documents and prefix go together: a document's number is of a prefix"
            )
        return self


def _check_floor(given: Any) -> Any:
    shares = given.values() if isinstance(given, dict) else [given]
    if not all(_is_weight(share) and share <= 1 for share in shares):
        raise PydanticCustomError(
            "floor", "should be a share, 0 to 1, or a mapping of domains to such shares"
        )
    return given


class Dynamic(StepRule):
    """Shares of the stream that follow the losses: the blend's, times a strategy's multipliers.

    What an option of ``reweight`` does to a domain's loss, it does here to its share.
    """

    strategy: str = Field(description="The rule (docs/strategies.md); its options stand beside it.")
    block: Annotated[int, Field(gt=0, le=LARGEST_BLOCK)] = Field(
        default=4096, description="Samples for which the shares are decided at a time."
    )
    floor: Annotated[float | dict[str, float], BeforeValidator(_check_floor)] = Field(
        default=0.0,
        description="Smallest share: of every domain (or its share of the blend, where that is "
        "less), or by domain.",
    )
    epochs: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="How often the run may read a prefix; absent: as it comes."
    )


class Mix(Section):
    """Which training sample comes when."""

    schedule: list[Stage] = Field(
        default=[], description="Stages of the blend, one after the other. Empty: one blend."
    )
    dynamic: Dynamic | None = Field(
        default=None,
        description="Shares of the domains that follow their losses; absent: those of the blend.",
    )
    skip: list[Cut] = Field(
        default=[], description="Cuts in the stream: training goes on with what comes after."
    )
    already_read: Path | None = Field(
        default=None,
        description="File of the documents that a run before has read, which this one does not "
        "(`domain-pretrain plan` writes it); absent: all are trained on.",
    )
    on_change: Literal["refuse", "continue"] = Field(
        default="refuse",
        description="Where a resumed run mixes its data in another way: end with what has changed, "
        "or go on with each prefix where it stood.",
    )

    @property
    def asked_for(self) -> bool:
        """Whether the stream takes the place of the host's blend."""
        wanted = self.schedule or self.skip or self.dynamic or self.already_read
        return bool(wanted or self.on_change == "continue")

    @model_validator(mode="after")
    def _one_decides(self) -> Mix:
        if self.schedule and self.dynamic:
            raise PydanticCustomError(
                "both",
                "schedule and dynamic both say how much of a domain comes when: take one out",
            )
        return self

    @model_validator(mode="after")
    def _stages_follow_each_other(self) -> Mix:
        for number, stage in enumerate(self.schedule):
            open_ended = all(getattr(stage, name) is None for name in LENGTHS)
            if open_ended and number + 1 < len(self.schedule):
                raise PydanticCustomError(
                    "stages",
                    "stage {number} has no length: only the last one takes the rest of the run; "
                    "give one of {known}",
                    {"number": number + 1, "known": ", ".join(LENGTHS)},
                )
        if self.schedule and self.schedule[0].shape != "constant":
            raise PydanticCustomError(
                "stages",
                "the first stage is {shape}, and has no stage before it to come from: put a "
                "constant one before it",
                {"shape": self.schedule[0].shape},
            )
        return self
