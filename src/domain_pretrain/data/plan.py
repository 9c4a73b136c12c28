"""The plan of tokens: how many each step and the run take, and how often each domain is read."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.mix.describe import describe, samples_of, warn_of_idle
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading


@dataclass(frozen=True)
class DomainPlan:
    """One domain's part of the run.

    Attributes:
        name: of the domain.
        share: of the run's tokens, 0 to 1.
        tokens: that the run takes from it.
        corpus: tokens of its training split on disk.
    """

    name: str
    share: float
    tokens: float
    corpus: float

    @property
    def epochs(self) -> float:
        """How often the run reads the domain."""
        return self.tokens / self.corpus


@dataclass(frozen=True)
class PrefixPlan:
    """One prefix's part of a run whose stream the config's ``mix`` makes.

    Attributes:
        prefix: as the data flag spells it.
        samples: that the run takes from it.
        epochs: how often it reads it.
    """

    prefix: str
    samples: int
    epochs: float


@dataclass(frozen=True)
class TokenPlan:
    """What the run reads.

    Attributes:
        tokens_per_step: of the global batch.
        iterations: optimizer steps.
        domains: that are trained on, in the order of the config, else of the data flag; empty where
            the data is not on this machine's disk (an object store, ``--mock-data``).
        prefixes: of the config's ``mix``; empty without one, or where the data is not here.
        stages: of it and its cuts, in words: what, and how.
        warnings: of it.
    """

    tokens_per_step: int
    iterations: int
    domains: tuple[DomainPlan, ...]
    prefixes: tuple[PrefixPlan, ...] = ()
    stages: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.tokens_per_step * self.iterations


def plan_tokens(
    tokens_per_step: int,
    iterations: int,
    reading: Reading,
    catalog: Catalog,
    mix: Plan | None = None,
    seq_length: int = 1,
) -> TokenPlan:
    """Work the plan out.

    Args:
        tokens_per_step: of the global batch.
        iterations: optimizer steps.
        reading: what the run trains on.
        catalog: whose it is.
        mix: the plugin's stream; None: the host's own blend.
        seq_length: tokens of a sample.
    """
    total = tokens_per_step * iterations
    prefixes = () if mix is None else tuple(_prefixes(mix, reading, seq_length))
    weights = [float(prefix.samples) for prefix in prefixes] or None
    return TokenPlan(
        tokens_per_step,
        iterations,
        tuple(_domains(reading, catalog, total, weights)),
        prefixes,
        () if mix is None else tuple(describe(mix, catalog.prefixes)),
        () if mix is None else tuple(warn_of_idle(mix)),
    )


def _prefixes(mix: Plan, reading: Reading, seq_length: int) -> Iterator[PrefixPlan]:
    """``--split`` cuts by documents; see :func:`training_tokens`."""
    part = reading.parts[0]
    if part is None or not all(prefix in reading.indices for prefix in mix.prefixes):
        return
    tokens = [reading.indices[prefix].tokens * (part[1] - part[0]) for prefix in mix.prefixes]
    samples = samples_of(mix, [max(1, int((count - 1) // seq_length)) for count in tokens])
    for prefix, count, size in zip(mix.prefixes, samples, tokens, strict=True):
        yield PrefixPlan(prefix, count, count * seq_length / size)


def training_tokens(reading: Reading, domain_of: Mapping[str, str]) -> dict[str, float]:
    """Tokens of every domain's training data.

    ``--split`` cuts by documents: its part of a prefix's tokens is taken to be that of its
    documents. A prefix may be in a blend twice; its tokens are there once.

    Args:
        reading: what the run reads.
        domain_of: data prefix, normalised → name of its domain.

    Returns:
        Without the domains of which it is not known: in an object store, say.
    """
    blend, part = reading.blends[0], reading.parts[0]
    if blend is None or part is None:
        return {}
    tokens: defaultdict[str, float] = defaultdict(float)
    for key, prefix in {normalise(prefix): prefix for prefix in blend[0]}.items():
        index = reading.indices.get(prefix)
        tokens[domain_of[key]] += math.nan if index is None else index.tokens * (part[1] - part[0])
    return {name: count for name, count in tokens.items() if not math.isnan(count)}


def _domains(
    reading: Reading, catalog: Catalog, total: int, mixed: list[float] | None
) -> Iterator[DomainPlan]:
    blend = reading.blends[0]
    if blend is None or not all(prefix in reading.indices for prefix in blend[0]):
        return
    prefixes, weights = blend
    weights = mixed or weights or [float(reading.indices[prefix].tokens) for prefix in prefixes]
    owners = [catalog.prefixes[normalise(prefix)] for prefix in prefixes]
    corpus = training_tokens(reading, catalog.prefixes)
    for name in filter(corpus.get, catalog.names):
        own = [weight for weight, owner in zip(weights, owners, strict=True) if owner == name]
        share = sum(own) / sum(weights)
        yield DomainPlan(name, share, share * total, corpus[name])
