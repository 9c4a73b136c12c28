"""How much training data each domain has on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from domain_pretrain.data.blend import Blend
from domain_pretrain.data.prefixes import count_tokens, normalise
from domain_pretrain.errors import ConfigError


def training_tokens(
    domain_of: Mapping[str, str], blend: Blend, per_split: Sequence[Blend] | None, split: str | None
) -> dict[str, int]:
    """Tokens of every domain's training data; without the domains of which it is not known.

    Args:
        domain_of: data prefix, normalised → name of its domain.
        blend, per_split: what Megatron-LM's ``get_blend_and_blend_per_split`` returns.
        split: ``--split``, which cuts ``blend`` by documents: a domain's part of the tokens is
            taken to be that of its documents.
    """
    share = _training_share(split) if split else 1.0
    if per_split is not None and any(per_split):
        blend, share = per_split[0], 1.0
    tokens: dict[str, int] = {}
    unknown = set()
    for prefix in dict.fromkeys(map(normalise, blend[0] if blend else ())):
        name = domain_of[prefix]
        try:
            tokens[name] = tokens.get(name, 0) + count_tokens(prefix)
        except ConfigError:  # in an object store, say; or conversations, which are no tokens yet
            unknown.add(name)
    return {name: round(share * count) for name, count in tokens.items() if name not in unknown}


def _training_share(split: str) -> float:
    """The first part, read as Megatron does."""
    parts = [float(part) for part in re.findall(r"[.0-9]+", split)]
    return parts[0] / sum(parts)
