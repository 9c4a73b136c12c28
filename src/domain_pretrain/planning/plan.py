"""The plan: whole steps of each stage, samples of each prefix, and what is doubtful about them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

from domain_pretrain.data.plan import Corpus, read_too_often
from domain_pretrain.errors import ConfigError
from domain_pretrain.planning.corpora import Patterns, Source, patterns_of, read_sources
from domain_pretrain.planning.section import PlanFile, Stage
from domain_pretrain.planning.shares import Claim, divide, read_claims, unknown_parts, whole
from domain_pretrain.suggest import did_you_mean

MOST_TOLD = 20


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
    """

    file: PlanFile
    stages: tuple[StagePlan, ...]
    prefixes: tuple[PrefixPlan, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def iterations(self) -> int:
        """Of all stages."""
        return sum(stage.iterations for stage in self.stages)

    @property
    def samples(self) -> int:
        """Of all stages."""
        return sum(stage.samples for stage in self.stages)


def make_plan(file: PlanFile) -> Plan:
    """Work a plan out.

    Raises:
        ConfigError: names everything that is wrong: names, files, budgets beyond the data.
    """
    patterns = patterns_of(file)
    claims, problems = _claims(file, patterns)
    takers = [taker for of_stage in claims for claim in of_stage for taker in claim.takers]
    used = {part for taker in takers for part in taker.parts(patterns)}
    by_part = {taker.domain for taker in takers if taker.ratios is not None}
    sources: list[Source] = []
    try:
        sources = read_sources(file, patterns, used, by_part)
    except ConfigError as error:
        problems += str(error).split("\n")
    if problems:
        raise ConfigError("\n  ".join(["the plan cannot be made:", *dict.fromkeys(problems)]))
    stages = _stages(file)
    sizes: dict[tuple[str, str], dict[str, int]] = {part: {} for part in used}
    for source in sources:
        sizes[source.domain, source.part][source.prefix] = source.corpus.samples
    shares = [divide(of_stage, patterns, sizes) for of_stage in claims]
    counts = [
        dict(zip(share, whole(list(share.values()), stage.samples), strict=True))
        for share, stage in zip(shares, stages, strict=True)
    ]
    prefixes = [
        _prefix_plan(source, tuple(count.get(source.prefix, 0) for count in counts), file)
        for source in sources
    ]
    beyond = list(_beyond_the_data(prefixes, file))
    if beyond:
        raise ConfigError("\n  ".join(["the budget is beyond the data:", *_few(beyond)]))
    warnings = [
        *_short_stages(stages, file),
        *_without_samples(stages, shares, counts),
        *_small(prefixes, file),
        *_repeated(prefixes),
    ]
    return Plan(
        file,
        tuple(stages),
        tuple(prefix for prefix in prefixes if prefix.samples),
        tuple(_left_out(patterns, used)),
        tuple(_few(warnings)),
    )


def _claims(file: PlanFile, patterns: Patterns) -> tuple[list[tuple[Claim, ...]], list[str]]:
    """Of every stage, and what is wrong with the names in the plan."""
    problems: list[str] = []
    for domain, parts in file.parts.items():
        if domain in patterns:
            problems += unknown_parts("parts", domain, parts, patterns)
        else:
            near = did_you_mean(domain, list(patterns))
            problems.append(
                f"parts: unknown domain {domain!r}{near} (domains: {', '.join(patterns)})"
            )
    right = {} if problems else file.parts
    claims = []
    for name, stage in zip(file.stage_names, file.stages, strict=True):
        found = read_claims(f"stage {name}", stage.numbers, patterns, right)
        claims.append(found.claims)
        problems += found.problems
    return claims, problems


def _left_out(patterns: Patterns, used: Collection[tuple[str, str]]) -> Iterator[str]:
    for name, parts in patterns.items():
        unused = [part for part in parts if (name, part) not in used]
        if len(unused) == len(parts):
            yield name
        else:
            yield from (f"{name}/{part}" for part in unused)


def _stages(file: PlanFile) -> list[StagePlan]:
    """In whole steps, never more than asked; but at least one."""
    absolute = [_absolute(stage, file.seq_length) for stage in file.stages]
    shares = sum((stage.share for stage in file.stages if stage.share is not None), Fraction(0))
    run = sum((samples for samples in absolute if samples is not None), Fraction(0)) / (1 - shares)
    stages = []
    for name, stage, samples in zip(file.stage_names, file.stages, absolute, strict=True):
        asked = samples if samples is not None else run * (stage.share or 0)
        iterations = max(1, int(asked / file.global_batch_size))
        stages.append(StagePlan(name, asked, iterations, iterations * file.global_batch_size))
    return stages


def _absolute(stage: Stage, seq_length: int) -> Fraction | None:
    """Samples of a stage; None where it is a share."""
    if stage.share is not None:
        return None
    total = Fraction(0)
    given = stage.size
    for number in given.values() if isinstance(given, dict) else [given]:
        total += sum(number.values()) if isinstance(number, dict) else number
    return total / seq_length if stage.tokens is not None else total


def _prefix_plan(source: Source, stages: tuple[int, ...], file: PlanFile) -> PrefixPlan:
    return PrefixPlan(source, stages, source.corpus.epochs(sum(stages), file.seq_length))


def _beyond_the_data(prefixes: list[PrefixPlan], file: PlanFile) -> Iterator[str]:
    for prefix in prefixes:
        corpus: Corpus = prefix.source.corpus
        if prefix.samples <= file.epochs * corpus.samples:
            continue
        needed = math.ceil(Fraction(prefix.samples, corpus.samples) * 100) / 100
        yield (
            f"{prefix.source.prefix!r} ({prefix.source.domain}) is asked for "
            f"{prefix.samples:,} samples ({prefix.samples * file.seq_length:,} tokens), and has "
            f"{corpus.samples:,} ({corpus.tokens:,} tokens) to train on: lower its part, or allow "
            f"epochs: {needed:g} (now {float(file.epochs):g})"
        )


def _short_stages(stages: list[StagePlan], file: PlanFile) -> Iterator[str]:
    for stage in stages:
        if stage.asked < file.global_batch_size:
            yield (
                f"stage {stage.name} is shorter than one batch: {float(stage.asked):,.1f} of "
                f"{file.global_batch_size:,} samples; it gets one step"
            )


def _without_samples(
    stages: list[StagePlan], shares: list[dict[str, Fraction]], counts: list[dict[str, int]]
) -> Iterator[str]:
    for stage, share, count in zip(stages, shares, counts, strict=True):
        for prefix, samples in count.items():
            if not samples:
                part = float(share[prefix] / sum(share.values()))
                yield (
                    f"{prefix!r} gets no sample in stage {stage.name}: its part is {part:.4%} of "
                    f"{stage.samples:,} samples"
                )


def _small(prefixes: list[PrefixPlan], file: PlanFile) -> Iterator[str]:
    for prefix in prefixes:
        there = prefix.source.corpus.samples
        if there < file.global_batch_size:
            yield (
                f"{prefix.source.prefix!r} ({prefix.source.domain}) is small: {there:,} samples in "
                f"all, less than one batch of {file.global_batch_size:,}"
            )


def _repeated(prefixes: list[PrefixPlan]) -> Iterator[str]:
    for prefix in prefixes:
        if warning := read_too_often(repr(prefix.source.prefix), prefix.epochs):
            yield warning


def _few(texts: list[str]) -> list[str]:
    more = len(texts) - MOST_TOLD
    return texts[:MOST_TOLD] + ([f"and {more:,} more"] if more > 0 else [])


def by_domain(plan: Plan, stage: int | None = None) -> Mapping[str, int]:
    """Samples of each domain, of a stage (counted from 0) or of the whole run."""
    found: dict[str, int] = {}
    for prefix in plan.prefixes:
        samples = prefix.samples if stage is None else prefix.stages[stage]
        found[prefix.source.domain] = found.get(prefix.source.domain, 0) + samples
    return found
