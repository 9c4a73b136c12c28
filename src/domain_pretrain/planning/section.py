"""The file of a plan: the data, the run's batches, and its stages with their budgets."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from domain_pretrain.data.domain import NAME
from domain_pretrain.data.splits import parse_split
from domain_pretrain.planning.numbers import MOST, Given, amount, by_name, problem, ratio
from domain_pretrain.section import Section, read_section

SPLIT = "99,1,0"


def _amounts(given: Any) -> Fraction | dict[str, Given]:
    return by_name(given, amount) if isinstance(given, Mapping) else amount(given)


def _mix(given: Any) -> dict[str, Given]:
    return by_name(given, ratio)


def _ratios(given: Any) -> dict[str, Given]:
    found = by_name(given, ratio)
    deep = [name for name, value in found.items() if isinstance(value, dict)]
    if deep:
        raise problem(f"{', '.join(deep)} should be a number: parts have no parts")
    return found


def _share(given: Any) -> Fraction:
    share = ratio(given)
    if share >= 1:
        raise ValueError("should be below 1: 0.1 is a tenth of the run")
    return share


def _split(given: Any) -> str:
    text = str(given)  # YAML reads 100 as a number
    if parse_split(text)[0] is None:
        raise ValueError("leaves nothing to train on")
    return text


def _parts(given: Any) -> dict[str, list[str]]:
    """Of one domain, by name; a prefix that has none is called as it is spelled."""
    if isinstance(given, Mapping) and given:
        return {_text(name): _prefixes(value, f"{name} ") for name, value in given.items()}
    return {prefix: [prefix] for prefix in _prefixes(given)}


def _prefixes(given: Any, name: str = "") -> list[str]:
    prefixes = [given] if isinstance(given, str) else given
    if not isinstance(prefixes, list) or not prefixes:
        raise problem(f"{name}should be a data prefix, a list of them, or a mapping of parts")
    return [_text(prefix) for prefix in prefixes]


def _text(given: Any) -> str:
    """As pydantic takes it: YAML can spell half a surrogate pair, which no file can hold."""
    if not isinstance(given, str) or not given or re.search("[\ud800-\udfff]", given):
        raise problem(f"should be texts, for parts and data prefixes, and has {given!a:.80}")
    return given


def _name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise problem(
            "no name of a domain: use letters, digits, '_', '-' and '.', beginning with a letter, "
            "digit or '_'"
        )
    return name


Amounts = Annotated[Fraction | dict[str, Given], PlainValidator(_amounts)]
Mix = Annotated[dict[str, Given], PlainValidator(_mix)]
Ratios = Annotated[dict[str, Fraction], PlainValidator(_ratios)]
Number = Annotated[Fraction, PlainValidator(ratio)]
Parts = Annotated[dict[str, list[str]], PlainValidator(_parts)]


class Stage(Section):
    """A part of the run with one mix: how much it takes, and how the domains share it."""

    name: str = Field("", description="For messages; without one, its number.")
    tokens: Amounts | None = Field(None, description="Of the stage, or of each domain.")
    samples: Amounts | None = Field(None, description="Of the stage, or of each domain.")
    share: Annotated[Fraction, PlainValidator(_share)] | None = Field(
        None, description="Of the whole run, as in 0.1."
    )
    mix: Mix | None = Field(None, description="Parts of the domains, relative to each other.")

    @model_validator(mode="after")
    def _one_size_one_mix(self) -> Stage:
        sizes = [name for name in ("tokens", "samples", "share") if getattr(self, name) is not None]
        if len(sizes) != 1:
            found = " and ".join(sizes) or "none of them"
            raise problem(f"needs one of tokens, samples and share, and has {found}")
        by_domain = isinstance(self.size, dict)
        if by_domain and self.mix is not None:
            raise problem(
                f"{sizes[0]} says what each domain gets, and so does mix: leave one of them out, "
                f"or give {sizes[0]} one number"
            )
        if not by_domain and self.mix is None:
            raise problem(
                "needs a mix: how do the domains share it? as in {finance: 1, general: 5}"
            )
        return self

    @property
    def size(self) -> Fraction | dict[str, Given]:
        """How much, in tokens, in samples, or as a part of the run: see which is not None."""
        given = self.tokens or self.samples or self.share
        assert given is not None  # one of them is there
        return given

    @property
    def numbers(self) -> dict[str, Given]:
        """By domain, group or part: amounts, or parts of the mix."""
        return self.size if isinstance(self.size, dict) else self.mix or {}


class Continues(Section):
    """A run that goes on from another, most often with longer sequences."""

    checkpoint: Path = Field(description="The run before: its folder, or that of its --save.")
    run: Path | None = Field(
        None,
        description="Its --domain-log-dir: documents that it has read are left out. Without: none.",
    )
    read_beyond: float = Field(
        0.0, ge=0, lt=1, description="A document counts as read if more than this part of it was."
    )
    rotary_base: int | None = Field(
        None, gt=0, lt=MOST, description="--rotary-base. Without: as it was."
    )
    context_parallel_size: int | None = Field(
        None, gt=0, lt=MOST, description="--context-parallel-size, which it must fit."
    )


class PlanFile(Section):
    """What a user writes."""

    seq_length: int = Field(gt=0, lt=MOST, description="Tokens of a sample.")
    continues: Continues | None = Field(None, description="The run that this one goes on from.")
    global_batch_size: int | None = Field(
        None,
        validate_default=True,
        gt=0,
        lt=MOST,
        description="Samples of a step. With continues: as many tokens as before, if not given.",
    )
    split: Annotated[str, PlainValidator(_split)] = Field(
        SPLIT, description="Megatron's --split: training, validation, test."
    )
    epochs: Number = Field(Fraction(1), description="How often the run may read any part at most.")
    domains: dict[Annotated[str, AfterValidator(_name)], Parts] = Field(
        default_factory=dict, description="By name: a data prefix, a list of them, or parts."
    )
    domain_config: Path | None = Field(
        None, description="Instead of domains: the run's --domain-config, which names them."
    )
    parts: dict[str, Ratios] = Field(
        default_factory=dict,
        description="By domain: how its parts share what it gets. Without: by their size.",
    )
    stages: list[Stage] = Field(min_length=1)

    @field_validator("global_batch_size", mode="before")
    @classmethod
    def _some_batch(cls, given: Any, known: ValidationInfo) -> Any:
        if given is None and known.data.get("continues") is None:
            raise problem("a step needs a number of samples, where there is no run before to ask")
        return given

    @model_validator(mode="after")
    def _it_fits(self) -> PlanFile:
        wrong = list(self._contradictions())
        if wrong:
            raise problem("; ".join(wrong))
        return self

    def _contradictions(self) -> Iterator[str]:
        if bool(self.domains) == (self.domain_config is not None):
            yield "needs one of domains and domain_config"
        names = self.stage_names
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"stages: two are called {name}"
        shares = [stage.share for stage in self.stages if stage.share is not None]
        if len(shares) == len(self.stages):
            yield (
                "stages: all of them are shares, and none says of how much: give one of them "
                "tokens or samples"
            )
        elif sum(shares) >= 1:
            yield (
                f"stages: they overlap: their shares add up to {float(sum(shares)):g}, which "
                "leaves nothing to those that have tokens or samples"
            )

    @property
    def batch(self) -> int:
        """Samples of a step, once :func:`.in_tokens_of` has settled them."""
        assert self.global_batch_size is not None
        return self.global_batch_size

    @property
    def stage_names(self) -> list[str]:
        """Of each stage."""
        return [stage.name or str(n) for n, stage in enumerate(self.stages, start=1)]

    @classmethod
    def load(cls, path: str | Path) -> PlanFile:
        """Read and check a file.

        Raises:
            ConfigError: it cannot be read, is not a YAML mapping, or breaks the schema; the message
                lists every offending key by its path.
        """
        return read_section(cls, path, "plan")
