"""What a run reads of its data: tokens and samples there, tokens and samples taken, epochs.

One place for these formulas: a preflight, the planning of budgets and a run's own records use them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.mix.describe import describe, samples_of, warn_of_idle
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading

MANY_EPOCHS = 4  # beyond it, repeated tokens teach ever less (arXiv:2305.16264)


@dataclass(frozen=True)
class Corpus:
    """Training data on disk, of one prefix or of several.

    Attributes:
        tokens: of the documents that are for training.
        samples: of one epoch. Megatron cuts a prefix into windows of ``--seq-length`` tokens, and
            the last token of each is predicted from the one before: (tokens - 1) // length.
    """

    tokens: int
    samples: int

    @classmethod
    def of(cls, tokens: int, seq_length: int) -> Corpus:
        """Of one prefix."""
        return cls(tokens, max(tokens - 1, 0) // seq_length)

    def __add__(self, other: Corpus) -> Corpus:
        return Corpus(self.tokens + other.tokens, self.samples + other.samples)

    def epochs(self, samples: float, seq_length: int) -> float:
        """How often a run reads it that takes so many samples of it.

        What is shorter than a sample is read over and over within each.
        """
        if self.samples:
            return samples / self.samples
        return samples * seq_length / self.tokens


@dataclass(frozen=True)
class DomainPlan:
    """One domain's part of the run.

    Attributes:
        name: of the domain.
        share: of the run's tokens, 0 to 1.
        samples: that the run takes from it.
        tokens: of these samples.
        corpus: its training split on disk.
        epochs: how often the run reads it.
    """

    name: str
    share: float
    samples: float
    tokens: float
    corpus: Corpus
    epochs: float


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


def read_too_often(what: str, epochs: float) -> str | None:
    """A warning about ``what`` is read more than :data:`MANY_EPOCHS` times."""
    if epochs <= MANY_EPOCHS:
        return None
    return (
        f"{what} is read {epochs:.1f} times: beyond {MANY_EPOCHS} epochs repeated tokens teach "
        "little; lower its weight, or find more data"
    )


def plan_tokens(
    batch: int,
    seq_length: int,
    iterations: int,
    reading: Reading,
    catalog: Catalog,
    mix: Plan | None = None,
) -> TokenPlan:
    """Work the plan out.

    Args:
        batch: samples of a step.
        seq_length: tokens of a sample.
        iterations: optimizer steps.
        reading: what the run trains on.
        catalog: whose it is.
        mix: the plugin's stream; None: the host's own blend.
    """
    corpora = training_corpora(reading, seq_length)
    prefixes = () if mix is None else tuple(_prefixes(mix, corpora, seq_length))
    weights = [float(prefix.samples) for prefix in prefixes] or None
    return TokenPlan(
        batch * seq_length,
        iterations,
        tuple(_domains(reading, corpora, catalog, batch * iterations, seq_length, weights)),
        prefixes,
        () if mix is None else tuple(describe(mix, catalog.prefixes)),
        () if mix is None else tuple(warn_of_idle(mix)),
    )


def _prefixes(mix: Plan, corpora: Mapping[str, Corpus], seq_length: int) -> Iterator[PrefixPlan]:
    if not all(prefix in corpora for prefix in mix.prefixes):
        return
    own = [corpora[prefix] for prefix in mix.prefixes]
    samples = samples_of(mix, [max(1, corpus.samples) for corpus in own])
    for prefix, count, corpus in zip(mix.prefixes, samples, own, strict=True):
        yield PrefixPlan(prefix, count, corpus.epochs(count, seq_length))


def training_corpora(reading: Reading, seq_length: int) -> dict[str, Corpus]:
    """What is there to train on, by prefix as the training blend spells it.

    Reads the lengths of the documents on one side of ``--split``'s cut.

    Args:
        reading: what the run reads.
        seq_length: tokens of a sample.

    Returns:
        Without the prefixes that are not on this machine's disk: in an object store, say.
    """
    blend, part = reading.blends[0], reading.parts[0]
    if blend is None or part is None:
        return {}
    corpora = {}
    for prefix in dict.fromkeys(blend[0]):
        if prefix in reading.indices:
            corpora[prefix] = Corpus.of(reading.training_tokens(prefix), seq_length)
    return corpora


def training_tokens(
    reading: Reading, of_prefix: Mapping[str, Corpus], domain_of: Mapping[str, str]
) -> dict[str, int]:
    """Tokens of every domain's training data; of a prefix that is in the blend twice, once.

    Args:
        reading: what the run reads.
        of_prefix: of :func:`training_corpora`.
        domain_of: data prefix, normalised → name of its domain.

    Returns:
        Without the domains of which it is not known: in an object store, say.
    """
    corpora = _corpora_of_domains(reading, of_prefix, domain_of)
    return {name: corpus.tokens for name, corpus in corpora.items()}


def _corpora_of_domains(
    reading: Reading, of_prefix: Mapping[str, Corpus], domain_of: Mapping[str, str]
) -> dict[str, Corpus]:
    """Of the domains all of whose training prefixes are on this disk; each prefix once."""
    blend = reading.blends[0]
    if blend is None:
        return {}
    corpora: defaultdict[str, Corpus] = defaultdict(lambda: Corpus(0, 0))
    unknown = set()
    for key, prefix in {normalise(prefix): prefix for prefix in blend[0]}.items():
        if prefix in of_prefix:
            corpora[domain_of[key]] += of_prefix[prefix]
        else:
            unknown.add(domain_of[key])
    return {name: corpus for name, corpus in corpora.items() if name not in unknown}


def _domains(
    reading: Reading,
    of_prefix: Mapping[str, Corpus],
    catalog: Catalog,
    total: int,
    seq_length: int,
    mixed: list[float] | None,
) -> Iterator[DomainPlan]:
    """Of ``total`` samples; ``mixed``: how many come from each prefix, where that is known."""
    blend = reading.blends[0]
    if blend is None or not all(prefix in reading.indices for prefix in blend[0]):
        return
    prefixes, weights = blend
    weights = mixed or weights
    if weights is None:  # then Megatron takes one epoch of each
        # At least 1: a single prefix may be shorter than that.
        weights = [max(of_prefix[one].samples, 1.0) for one in prefixes if one in of_prefix]
    owners = [catalog.prefixes[normalise(prefix)] for prefix in prefixes]
    corpora = _corpora_of_domains(reading, of_prefix, catalog.prefixes)
    for name in catalog.names:
        corpus = corpora.get(name)
        if corpus is None or not corpus.tokens:
            continue
        own = [weight for weight, owner in zip(weights, owners, strict=True) if owner == name]
        share = sum(own) / sum(weights)
        samples = share * total
        epochs = corpus.epochs(samples, seq_length)
        yield DomainPlan(name, share, samples, samples * seq_length, corpus, epochs)
