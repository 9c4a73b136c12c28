"""The plan of tokens: how many each step and the run take, and how often each domain is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.origin import ById
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
class TokenPlan:
    """What the run reads.

    Attributes:
        tokens_per_step: of the global batch.
        iterations: optimizer steps.
        domains: that are trained on, in the order of the config, else of the data flag; empty where
            the data is not on this machine's disk (an object store, ``--mock-data``).
    """

    tokens_per_step: int
    iterations: int
    domains: tuple[DomainPlan, ...]

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.tokens_per_step * self.iterations


def plan_tokens(
    tokens_per_step: int, iterations: int, reading: Reading, catalog: Catalog
) -> TokenPlan:
    """Work the plan out.

    Args:
        tokens_per_step: of the global batch.
        iterations: optimizer steps.
        reading: what the run trains on.
        catalog: whose it is.
    """
    total = tokens_per_step * iterations
    return TokenPlan(tokens_per_step, iterations, tuple(_domains(reading, catalog, total)))


def _domains(reading: Reading, catalog: Catalog, total: int) -> Iterator[DomainPlan]:
    blend, part = reading.blends[0], reading.parts[0]
    if blend is None or part is None or not all(prefix in reading.indices for prefix in blend[0]):
        return
    prefixes, weights = blend
    origin = catalog.split("train")
    owners = origin.domains if isinstance(origin, ById) else (0,) * len(prefixes)
    # A part of the documents, taken here for that of the tokens.
    training = part[1] - part[0]
    sizes = [training * reading.indices[prefix].tokens for prefix in prefixes]
    weights = weights or sizes
    for index, name in enumerate(catalog.names):
        own = [i for i, owner in enumerate(owners) if owner == index]
        if not own:
            continue  # of the other splits alone
        share = sum(weights[i] for i in own) / sum(weights)
        # A prefix may be in a blend twice; its tokens are there once.
        corpus = sum({normalise(prefixes[i]): sizes[i] for i in own}.values())
        yield DomainPlan(name, share, share * total, corpus)
