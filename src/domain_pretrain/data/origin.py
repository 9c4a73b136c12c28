"""How a domain is known: by a sample's id or a token's, by the split, or by a place in a list."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ById:
    """Batches carry ``dataset_id``: a blend.

    Attributes:
        domains: domain index of every dataset of the blend, indexed by its id.
    """

    domains: tuple[int, ...]


@dataclass(frozen=True)
class Constant:
    """Batches carry no id: one plain dataset.

    Attributes:
        domain: its domain index.
    """

    domain: int


@dataclass(frozen=True)
class Sets:
    """Batches carry no id: a list of plain datasets (``--multiple-validation-sets``).

    Attributes:
        domains: domain index of every dataset, in the order in which the host evaluates them.
    """

    domains: tuple[int, ...]


@dataclass(frozen=True)
class ByToken:
    """Batches carry ``domain_id``, a domain for each token: some of the data has channels."""


Origin = ById | Constant | Sets | ByToken
