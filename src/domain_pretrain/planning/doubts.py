"""What is wrong with the numbers of a plan, and what is doubtful about them; a sentence each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from domain_pretrain.data.plan import Corpus, read_too_often
from domain_pretrain.errors import ConfigError
from domain_pretrain.planning.plan import PrefixPlan, StagePlan
from domain_pretrain.planning.section import PlanFile

MOST_TOLD = 20  # of a kind


def check_budget(prefixes: Sequence[PrefixPlan], file: PlanFile) -> None:
    """Check that no prefix gives more than the plan's epochs.

    Raises:
        ConfigError: names each that does, what is there and what was asked.
    """
    if beyond := _few(_beyond_the_data(prefixes, file)):
        raise ConfigError("\n  ".join(["the budget is beyond the data:", *beyond]))


def doubts(
    stages: Sequence[StagePlan],
    prefixes: Sequence[PrefixPlan],
    shares: Sequence[Mapping[str, Fraction]],
    file: PlanFile,
) -> list[str]:
    """What to warn of.

    Args:
        stages: of the plan.
        prefixes: that a stage names, also those that get no sample.
        shares: of each stage: what a prefix takes, relative to the others.
        file: of the plan.
    """
    return [
        *_few(_short_stages(stages, file)),
        *_few(_without_samples(stages, prefixes, shares)),
        *_few(_small(prefixes, file)),
        *_few(_repeated(prefixes)),
    ]


def _beyond_the_data(prefixes: Sequence[PrefixPlan], file: PlanFile) -> Iterator[str]:
    for prefix in prefixes:
        corpus: Corpus = prefix.source.corpus
        if prefix.samples <= file.epochs * corpus.samples:
            continue
        needed = math.ceil(Fraction(prefix.samples, corpus.samples) * 100) / 100
        yield (
            f"{prefix.source.prefix!r} ({prefix.source.domain}) is asked for "
            f"{prefix.samples:,} samples ({prefix.samples * file.seq_length:,} tokens), and has "
            f"{corpus.samples:,} ({corpus.tokens:,} tokens) to train on: lower its part, or allow "
            f"epochs: {needed:.2f} (now {float(file.epochs):g})"
        )


def _short_stages(stages: Sequence[StagePlan], file: PlanFile) -> Iterator[str]:
    for stage in stages:
        if stage.asked < file.batch:
            yield (
                f"stage {stage.name} is shorter than one batch: {float(stage.asked):,.1f} of "
                f"{file.batch:,} samples; it gets one step"
            )


def _without_samples(
    stages: Sequence[StagePlan],
    prefixes: Sequence[PrefixPlan],
    shares: Sequence[Mapping[str, Fraction]],
) -> Iterator[str]:
    for n, (stage, share) in enumerate(zip(stages, shares, strict=True)):
        total = math.fsum(share.values())
        for prefix in prefixes:
            name = prefix.source.prefix
            if name in share and not prefix.stages[n]:
                part = float(share[name]) / total
                yield (
                    f"{name!r} gets no sample in stage {stage.name}: its part is {part:.4%} of "
                    f"{stage.samples:,} samples"
                )


def _small(prefixes: Sequence[PrefixPlan], file: PlanFile) -> Iterator[str]:
    for prefix in prefixes:
        there = prefix.source.corpus.samples
        if there < file.batch:
            yield (
                f"{prefix.source.prefix!r} ({prefix.source.domain}) is small: {there:,} samples in "
                f"all, less than one batch of {file.batch:,}"
            )


def _repeated(prefixes: Sequence[PrefixPlan]) -> Iterator[str]:
    for prefix in prefixes:
        if warning := read_too_often(repr(prefix.source.prefix), prefix.epochs):
            yield warning


def _few(told: Iterator[str]) -> list[str]:
    texts = list(told)
    more = len(texts) - MOST_TOLD
    return texts[:MOST_TOLD] + ([f"and {more:,} more such"] if more > 0 else [])
