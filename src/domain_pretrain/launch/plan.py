"""The plan of tokens: how many a step and the run take, and how often each domain is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from domain_pretrain.blend import check_data_path, data_path_arguments
from domain_pretrain.catalog import Blend, Catalog
from domain_pretrain.config import DomainConfig
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.flags import Flags
from domain_pretrain.prefixes import check_files, count_tokens, is_remote

DEFAULT_SPLIT = "969,30,1"  # Megatron's: train, validation, test


@dataclass(frozen=True)
class DomainPlan:
    """One domain's part of the run.

    Attributes:
        name: of the domain.
        share: of the run's tokens, 0 to 1.
        tokens: that the run takes of it.
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


def plan_tokens(flags: Flags) -> TokenPlan:
    """Work the plan out.

    Raises:
        ConfigError: a flag that it takes is missing; data files are missing, or config and flags
            contradict each other.
    """
    batch, length, iterations = flags.global_batch_size, flags.seq_length, flags.iterations
    missing = [
        name
        for name, value in (
            ("--global-batch-size", batch),
            ("--seq-length", length),
            ("--train-iters", iterations),
        )
        if not value
    ]
    if not (batch and length and iterations):
        raise ConfigError(f"no plan of tokens without {', '.join(missing)}")
    total = batch * length * iterations
    return TokenPlan(batch * length, iterations, tuple(_domains(flags, total)))


def _domains(flags: Flags, total: int) -> Iterator[DomainPlan]:
    config = DomainConfig.load(flags.domain_config) if flags.domain_config else None
    words = flags.data_path or flags.train_data_path
    if words is None and config is not None and config.domains:
        words = tuple(data_path_arguments(config)[1:])
    if words is None:
        return
    check_data_path(words)
    blend = _blend(words)
    prefixes, weights = blend
    check_files(prefixes)
    # Built the way the run will build it, so that a disagreement with the config shows now.
    only_training = flags.data_path is None and flags.train_data_path is not None
    per_split: list[Blend] | None = [blend, None, None] if only_training else None
    catalog = Catalog.build(None if only_training else blend, per_split, config)
    split = catalog.split("train")
    assert split is not None
    owners = split.domain_of_dataset or (split.constant_domain,) * len(prefixes)
    if any(map(is_remote, prefixes)):
        return
    sizes = [count_tokens(prefix) for prefix in prefixes]
    weights = weights or [float(size) for size in sizes]
    training = 1.0 if only_training else _training_share(flags.split or DEFAULT_SPLIT)
    for index, name in enumerate(catalog.names):
        own = [i for i, owner in enumerate(owners) if owner == index]
        share = sum(weights[i] for i in own) / sum(weights)
        corpus = training * sum(sizes[i] for i in own)
        if corpus <= 0:
            raise ConfigError(f"domain {name!r} has no training tokens")
        yield DomainPlan(name, share, share * total, corpus)


def _blend(words: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Weights and prefixes of a data flag that :func:`check_data_path` has passed."""
    try:
        weights = [float(word) for word in words[::2]]
    except ValueError:
        return list(words), None
    return (list(words), None) if len(words) % 2 else (list(words[1::2]), weights)


def _training_share(split: str) -> float:
    """The first part of ``--split``: of the documents, taken here for that of the tokens."""
    parts = [float(part) for part in split.replace("/", ",").split(",")]
    return parts[0] / sum(parts)
