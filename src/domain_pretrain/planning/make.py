"""From the file of a plan to the plan."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from fractions import Fraction
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.planning.before import doubts_of, in_tokens_of, read_before
from domain_pretrain.planning.corpora import Patterns, Source, patterns_of, read_sources
from domain_pretrain.planning.doubts import check_budget, doubts
from domain_pretrain.planning.plan import Plan, PrefixPlan, StagePlan
from domain_pretrain.planning.section import PlanFile, Stage
from domain_pretrain.planning.shares import Claim, divide, read_claims, unknown_parts, whole
from domain_pretrain.suggest import did_you_mean


def make_plan(file: PlanFile, read: Mapping[str, Any] | None = None) -> Plan:
    """Work a plan out.

    Args:
        file: what is asked for.
        read: what the run before has read, of which nothing counts.

    Raises:
        ConfigError: names everything that is wrong: names, files, budgets beyond the data.
    """
    before = None if file.continues is None else read_before(file.continues)
    if before is not None:
        file = in_tokens_of(before, file)
    patterns = patterns_of(file)
    claims, problems = _claims(file, patterns)
    takers = [taker for of_stage in claims for claim in of_stage for taker in claim.takers]
    used = {part for taker in takers for part in taker.parts(patterns)}
    by_part = {taker.domain for taker in takers if taker.ratios is not None}
    sources: list[Source] = []
    try:
        sources = read_sources(file, patterns, used, by_part, read)
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
    check_budget(prefixes, file)
    return Plan(
        file,
        tuple(stages),
        tuple(prefix for prefix in prefixes if prefix.samples),
        tuple(_left_out(patterns, used)),
        (*doubts(stages, prefixes, shares, file), *doubts_of(before, file)),
        before,
        read,
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
        iterations = max(1, int(asked / file.batch))
        stages.append(StagePlan(name, asked, iterations, iterations * file.batch))
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
