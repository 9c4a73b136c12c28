"""The plan of tokens: how many each step and the run take, and how often each domain is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from domain_pretrain.data.blend import Blend
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.domain import Domain
from domain_pretrain.data.origin import ById
from domain_pretrain.data.prefixes import check_files, count_tokens
from domain_pretrain.errors import ConfigError
from domain_pretrain.paths import is_remote

DEFAULT_SPLIT = "969,30,1"  # Megatron's: train, validation, test


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
class TokenPlan:
    """What the run reads.

    Attributes:
        tokens_per_step: of the global batch.
        iterations: optimizer steps.
        domains: in the order of the config, else of the data flag; empty where the data is not on
            this machine's disk (an object store, ``--mock-data``).
    """

    tokens_per_step: int
    iterations: int
    domains: tuple[DomainPlan, ...]

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.tokens_per_step * self.iterations


def plan_tokens(
    tokens_per_step: int,
    iterations: int,
    blend: Blend,
    domains: Mapping[str, Domain],
    *,
    split: str | None,
) -> TokenPlan:
    """Work the plan out.

    Args:
        tokens_per_step: of the global batch.
        iterations: optimizer steps.
        blend: what the run trains on; None where it is not known.
        domains: of the config.
        split: ``--split``; None where the whole blend is for training.

    Raises:
        ConfigError: data files are missing, or config and blend contradict each other.
    """
    total = tokens_per_step * iterations
    found = () if blend is None else _domains(blend, domains, split, total)
    return TokenPlan(tokens_per_step, iterations, tuple(found))


def _domains(
    blend: tuple[list[str], list[float] | None],
    domains: Mapping[str, Domain],
    split: str | None,
    total: int,
) -> Iterator[DomainPlan]:
    prefixes, weights = blend
    check_files(prefixes)
    # Built the way the run will build it, so that a disagreement with the config shows now.
    per_split: list[Blend] | None = [blend, None, None] if split is None else None
    catalog = Catalog.build(None if split is None else blend, per_split, domains)
    origin = catalog.split("train")
    owners = origin.domains if isinstance(origin, ById) else (0,) * len(prefixes)
    if any(map(is_remote, prefixes)):
        return
    sizes = [count_tokens(prefix) for prefix in prefixes]
    weights = weights or [float(size) for size in sizes]
    training = 1.0 if split is None else _training_share(split)
    for index, name in enumerate(catalog.names):
        own = [i for i, owner in enumerate(owners) if owner == index]
        share = sum(weights[i] for i in own) / sum(weights)
        corpus = training * sum(sizes[i] for i in own)
        if corpus <= 0:
            raise ConfigError(f"domain {name!r} has no training tokens")
        yield DomainPlan(name, share, share * total, corpus)


def _training_share(split: str) -> float:
    """The first part of ``--split``: of the documents, taken here for that of the tokens."""
    parts = [float(part) for part in split.replace("/", ",").split(",")]
    return parts[0] / sum(parts)
