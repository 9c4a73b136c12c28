"""What there is of each part of the data to train on, read from the indices alone."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from domain_pretrain.config import DomainConfig
from domain_pretrain.data import already_read
from domain_pretrain.data.blend import domain_prefixes
from domain_pretrain.data.domain import Domain
from domain_pretrain.data.plan import Corpus, training_corpora
from domain_pretrain.data.prefixes import check_files, expand, normalise
from domain_pretrain.data.reading import Reading, check_links
from domain_pretrain.data.splits import check_splits, parse_split
from domain_pretrain.errors import ConfigError
from domain_pretrain.paths import is_remote
from domain_pretrain.planning.section import PlanFile
from domain_pretrain.stats import SPLITS

ALREADY_READ = "already_read.json"
Found = TypeVar("Found")
Patterns = Mapping[str, Mapping[str, list[str]]]  # of prefixes, by domain and part


@dataclass(frozen=True)
class Source:
    """A prefix of the plan: whose it is, and what it holds."""

    prefix: str
    domain: str
    part: str
    corpus: Corpus


def patterns_of(plan: PlanFile) -> Patterns:
    """The domains of a plan, and the parts of each.

    Raises:
        ConfigError: its ``domain_config`` is wrong, names no domains, or mixes by the losses.
    """
    if plan.domain_config is None:
        return plan.domains
    config = DomainConfig.load(plan.domain_config)
    if not config.domains:
        raise ConfigError(f"domain config {str(plan.domain_config)!r} names no domains")
    if config.mix.dynamic is not None:
        raise ConfigError(
            f"domain config {str(plan.domain_config)!r}: mix.dynamic lets the losses decide what "
            "is sampled, so that no run would keep to the plan's shares: take it out"
        )
    domains = config.domains.items()
    return {name: {entry: [entry] for entry in domain.data} for name, domain in domains}


def read_sources(
    plan: PlanFile,
    patterns: Patterns,
    used: Collection[tuple[str, str]],
    by_part: Collection[str],
    read: Mapping[str, Any] | None = None,
) -> list[Source]:
    """Look at the files of all that is used.

    Args:
        plan: whose split and length of a sample hold.
        patterns: of prefixes.
        used: domain and part of each that a stage names.
        by_part: domains whose parts have numbers of their own: no prefix of them may be in two. Of
            the others, the first part that names a prefix has it.
        read: what a run before has read, of which nothing counts.

    Raises:
        ConfigError: all that is wrong: files that are missing or broken, a split that has nothing
            to read, prefixes that are shorter than one sample, or are two domains'.
    """
    problems: list[str] = []

    def attempt(check: Callable[[], Found]) -> Found | None:
        try:
            return check()
        except ConfigError as error:
            problems.extend(str(error).split("\n"))
            return None

    owner: dict[str, tuple[str, str, str]] = {}  # by place: prefix, domain, part
    for name, part in ((name, part) for name, parts in patterns.items() for part in parts):
        entries = patterns[name][part] if (name, part) in used else []
        for prefix in (prefix for entry in entries for prefix in _expand(entry)):
            _, domain, other = owner.setdefault(normalise(prefix), (prefix, name, part))
            if domain == name in by_part and other != part:
                problems.append(f"prefix {prefix!r} is in two parts of {name!r}: {other}, {part}")
            if is_remote(prefix):
                problems.append(f"{prefix!r} lies in an object store: its size cannot be read here")
    attempt(lambda: domain_prefixes(_as_domains(patterns, used)))
    prefixes = [prefix for prefix, _, _ in owner.values()]
    indices = attempt(lambda: check_files(prefixes))
    if problems or indices is None:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    # Weights or none changes only what a split has to hold; a plan's blend has them.
    blends = ((prefixes, [1.0] * len(prefixes)),) * len(SPLITS)
    reading = Reading(blends, parse_split(plan.split), indices)
    attempt(lambda: check_links({key: name for key, (_, name, _) in owner.items()}))
    attempt(lambda: check_splits(blends, reading.parts, indices, plan.seq_length))
    if read is not None:
        found = attempt(lambda: already_read.parse(read, Path(ALREADY_READ), indices))
        reading = replace(reading, already_read=found)
    corpora = training_corpora(reading, plan.seq_length)
    sources = [Source(prefix, name, part, corpora[prefix]) for prefix, name, part in owner.values()]
    problems += _too_short(sources, plan.seq_length, "" if read is None else " and not yet read")
    if problems:
        raise ConfigError("\n".join(problems))
    return sources


def _expand(entry: str) -> list[str]:
    try:
        return expand(entry)
    except ConfigError:
        return []  # domain_prefixes tells


def _as_domains(patterns: Patterns, used: Collection[tuple[str, str]]) -> dict[str, Domain]:
    """What is used, without its parts."""
    data = {
        name: [entry for part in parts if (name, part) in used for entry in parts[part]]
        for name, parts in patterns.items()
    }
    return {
        name: Domain.model_validate({"data": entries}) for name, entries in data.items() if entries
    }


def _too_short(sources: list[Source], seq_length: int, which: str) -> Iterator[str]:
    for source in sources:
        if not source.corpus.samples:
            yield (
                f"{source.prefix!r} ({source.domain}) is shorter than one sequence: "
                f"{source.corpus.tokens:,} tokens to train on{which}, and a sample takes "
                f"{seq_length + 1:,}: join it with others, or leave it out"
            )
