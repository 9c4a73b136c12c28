"""What the alarms of a run know of its data before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.channels import leaves_of
from domain_pretrain.data.mix.plan import Plan, Stage
from domain_pretrain.data.mix.planned import planned_shares
from domain_pretrain.data.plan import Corpus, training_corpora, training_tokens
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.told import Told, read_manifests
from domain_pretrain.errors import shorten
from domain_pretrain.hosts.ranks import from_first_rank
from domain_pretrain.process import notice
from domain_pretrain.watch import Known

_NEED_ENTROPY = {"dirty", "too_low"}


def known_of(
    config: DomainConfig,
    catalog: Catalog,
    reading: Reading,
    plan: Plan | None,
    *,
    seq_length: int,
    alarms: Sequence[str],
) -> Known:
    """All ranks call this together.

    Manifests and the lengths of documents are read by one rank for all: nodes may not see the same
    files.

    Args:
        config: of the run.
        catalog: of its domains.
        reading: of its data.
        plan: of its stream; None: the host's own blend.
        seq_length: tokens of a sample.
        alarms: names of those that are on.
    """
    blend, domain_of = reading.blends[0], catalog.prefixes
    prefixes = () if blend is None or not reading.indices else tuple(blend[0])

    def read() -> tuple[Told, dict[str, int], list[float] | None]:
        corpora = training_corpora(reading, seq_length)
        tokens = training_tokens(reading, corpora, domain_of)
        return read_manifests(prefixes, domain_of), tokens, _sizes(reading, corpora)

    told, tokens, sizes = from_first_rank(read)
    owners = dict.fromkeys(domain_of[normalise(prefix)] for prefix in prefixes)
    leaves = (leaf for name in owners for leaf in leaves_of(name, catalog.names))
    without = [leaf for leaf in leaves if leaf not in told.entropy]
    if without and _NEED_ENTROPY & set(alarms):
        notice(
            f"watch: no manifest tells the entropy of {shorten(', '.join(without), 200)} "
            "(`prepare` writes that of whole files), so the alarms dirty and too_low have no "
            "yardstick for it"
        )
    pinned = [name for name, domain in config.domains.items() if domain.pinned]
    return Known(
        average=config.channel_loss.average,
        entropy=told.entropy,
        tokens=tokens,
        documents=told.documents,
        duplicates=told.duplicates,
        pinned=frozenset(leaf for name in pinned for leaf in leaves_of(name, catalog.names)),
        shares=_planned_shares(catalog, reading, plan, sizes),
    )


def _sizes(reading: Reading, corpora: Mapping[str, Corpus]) -> list[float] | None:
    """Samples that one epoch of every prefix has, where all are on this disk."""
    blend = reading.blends[0]
    prefixes = () if blend is None else blend[0]
    known = bool(prefixes) and all(prefix in corpora for prefix in prefixes)
    return [max(float(corpora[one].samples), 1.0) for one in prefixes] if known else None


def _planned_shares(
    catalog: Catalog, reading: Reading, plan: Plan | None, sizes: list[float] | None
) -> Callable[[int, int], dict[str, float]] | None:
    """Of the blend, or of ``mix``; None where the losses decide, or nothing is planned."""
    blend = reading.blends[0]
    decided = plan is not None and plan.block is not None
    if blend is None or decided or not catalog.prefixes:
        return None
    prefixes, weights = blend
    owners = [catalog.prefixes[normalise(prefix)] for prefix in prefixes]
    all_along = Stage(None, None if weights is None else tuple(weights))
    plan = plan or Plan(tuple(prefixes), (all_along,), 0)
    return partial(planned_shares, plan, sizes, owners, catalog.names)
