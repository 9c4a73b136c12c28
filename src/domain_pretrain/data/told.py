"""What the manifests beside the data tell of each domain, for those that have one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from domain_pretrain.data.prefixes import normalise
from domain_pretrain.errors import ConfigError
from domain_pretrain.prepare.manifest import Manifest, manifest_path


@dataclass
class Told:
    """By domain; without those of which a prefix has no manifest that says it.

    Attributes:
        entropy: nats, of the token ids; of several prefixes, the mean over their tokens, which is
            no more than that of all together.
        documents: how many.
        duplicates: of those, exact copies of another of the same prefix.
    """

    entropy: dict[str, float] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)


def read_manifests(prefixes: Iterable[str], domain_of: Mapping[str, str]) -> Told:
    """Read them; a broken one is as good as none.

    Args:
        prefixes: of the training data.
        domain_of: data prefix, normalised → name of its domain.
    """
    of_domain: dict[str, list[Manifest | None]] = {}
    for prefix in {normalise(one): None for one in prefixes}:
        of_domain.setdefault(domain_of[prefix], []).append(_manifest(prefix))
    told = Told()
    for name, manifests in of_domain.items():
        known = [one for one in manifests if one is not None and one.quality is not None]
        tokens = sum(one.tokens for one in known)
        if len(known) < len(manifests) or not tokens:
            continue
        qualities = [one.quality for one in known if one.quality is not None]
        entropies = [one.unigram_entropy_nats for one in qualities]
        told.entropy[name] = (
            sum(h * one.tokens for h, one in zip(entropies, known, strict=True)) / tokens
        )
        told.documents[name] = sum(one.documents for one in known)
        told.duplicates[name] = sum(one.exact_duplicates for one in qualities)
    return told


def _manifest(prefix: str) -> Manifest | None:
    try:
        return Manifest.load(prefix) if manifest_path(prefix).is_file() else None
    except ConfigError:
        return None
