"""Data prefix → dataset id → domain, per split."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from domain_pretrain.data.blend import Blend, check_agreement, check_blend
from domain_pretrain.data.channels import Channels, DocumentDomains
from domain_pretrain.data.domain import NAME, Domain
from domain_pretrain.data.origin import ById, ByToken, Constant, Origin, Sets
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.errors import ConfigError
from domain_pretrain.stats import SPLITS, Split


@dataclass(frozen=True)
class Catalog:
    """All domains of a run and where each split's samples belong.

    Attributes:
        names: the D domain names; a domain's index is its position here. In the order of the
            config, otherwise of first appearance over the train, valid and test blends.
        splits: one per name in :data:`SPLITS`; None where the split has no data of its own.
        prefixes: data prefix, normalised → name of its domain.
        documents: data prefix, normalised → whose its documents are; empty where a prefix is of one
            domain as a whole.
    """

    names: tuple[str, ...]
    splits: tuple[Origin | None, Origin | None, Origin | None]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    documents: Mapping[str, DocumentDomains] = field(default_factory=dict)

    def split(self, name: Split) -> Origin | None:
        """Where the samples of a split come from; None where it has no data.

        A blend that ``--split`` cuts into three is the blend of all three, also of one that has
        no share: Megatron then builds no dataset for it.
        """
        return self.splits[SPLITS.index(name)]

    def channels(self) -> dict[str, list[str]]:
        """The domains of every prefix that has channels, in their order, by its normalised name."""
        return {
            prefix: [self.names[domain] for domain in found.domains]
            for prefix, found in self.documents.items()
            if found.path is not None
        }

    def with_ids(self, name: Split) -> Catalog:
        """The same, where the batches of a split carry ids even if its data is one prefix."""
        splits = list(self.splits)
        origin = splits[SPLITS.index(name)]
        if isinstance(origin, Constant):
            splits[SPLITS.index(name)] = ById((origin.domain,))
        train, valid, test = splits
        return replace(self, splits=(train, valid, test))

    def parted(self, channels: Mapping[str, Channels]) -> Catalog:
        """The same, with the channels of some domains as domains: ``name/channel``.

        Args:
            channels: of every prefix of these domains, by its normalised spelling.
        """
        owned: dict[str, list[str]] = {name: [] for name in self.names}
        for prefix, name in self.prefixes.items():
            own = channels[prefix].names if prefix in channels else ()
            owned[name] += [f"{name}/{channel}" for channel in own]
        names = [leaf for name, leaves in owned.items() for leaf in dict.fromkeys(leaves or [name])]
        place = {name: number for number, name in enumerate(names)}
        documents = {}
        for prefix, name in self.prefixes.items():
            found = channels.get(prefix)
            if found is None:
                documents[prefix] = DocumentDomains(None, (place[name],))
            else:
                domains = tuple(place[f"{name}/{channel}"] for channel in found.names)
                documents[prefix] = DocumentDomains(found.path, domains)
        train, valid, test = (None if origin is None else ByToken() for origin in self.splits)
        return Catalog(tuple(names), (train, valid, test), self.prefixes, documents)

    @classmethod
    def build(
        cls,
        blend: Blend,
        blend_per_split: Sequence[Blend] | None,
        domains: Mapping[str, Domain],
        *,
        mock_data: bool = False,
        multiple_validation_sets: bool = False,
        validation_set_names: Sequence[str] | None = None,
    ) -> Catalog:
        """Work out the domain of every dataset that Megatron is going to build.

        Args:
            blend, blend_per_split: what Megatron's ``get_blend_and_blend_per_split`` returns.
            domains: of the config, by name; without any, every prefix is a domain.
            mock_data: ``--mock-data`` was given: one domain, ``mock``.
            multiple_validation_sets, validation_set_names: the flags of that name.

        Raises:
            ConfigError: the arguments contradict each other, or a weight or prefix is wrong.
        """
        per_split = blend_per_split is not None and any(blend_per_split)
        blends = list(blend_per_split or ()) if per_split else [blend] * len(SPLITS)
        if mock_data:
            if any(blends) or domains:
                raise ConfigError(
                    "--mock-data has no prefixes: take it off, or take off the data flags and the "
                    "domains of the config"
                )
            mock = Constant(0)
            return cls(("mock",), (mock, mock, mock))
        if not any(blends):
            raise ConfigError(
                "no data: give --data-path (or another data flag), or a --domain-config whose "
                "domains name their data"
            )
        for split, one in zip(SPLITS, blends, strict=True):
            check_blend(one, f"{split} blend" if per_split else "data blend")

        if domains:
            domain_of = check_agreement(domains, blends)
            names = tuple(domains)
        else:
            domain_of = name_prefixes(prefix for one in blends if one for prefix in one[0])
            names = tuple(domain_of.values())
        index = {name: i for i, name in enumerate(names)}

        def origin(one: Blend, *, as_list: bool) -> Origin | None:
            if one is None:
                return None
            prefixes, weights = one
            of_dataset = tuple(index[domain_of[normalise(prefix)]] for prefix in prefixes)
            # Megatron blends a single prefix only where it has a weight, and in a blend per split
            # not even then. That one prefix is also no list of validation sets.
            if len(prefixes) == 1 and (per_split or weights is None):
                return Constant(of_dataset[0])
            if as_list:
                return Sets(of_dataset)
            return ById(of_dataset)

        train, valid, test = blends
        # Outside a blend per split, Megatron ignores --multiple-validation-sets.
        valid_as_list = per_split and multiple_validation_sets
        splits = (
            origin(train, as_list=False),
            origin(valid, as_list=valid_as_list),
            origin(test, as_list=False),
        )
        if validation_set_names:
            _check_count(validation_set_names, splits[1], multiple_validation_sets)
        return cls(names, splits, domain_of)


def _check_count(
    set_names: Sequence[str], valid: Origin | None, multiple_validation_sets: bool
) -> None:
    """Check the number of names now: Megatron does so at the first evaluation."""
    if not multiple_validation_sets:
        raise ConfigError("--validation-set-names needs --multiple-validation-sets")
    count = len(valid.domains) if isinstance(valid, Sets) else 1 if valid else len(set_names)
    if len(set_names) != count:
        raise ConfigError(
            f"--validation-set-names gives {len(set_names)} names for {count} validation set(s)"
        )


def name_prefixes(prefixes: Iterable[str]) -> dict[str, str]:
    """A domain name for every prefix, by its normalised spelling, in order of first appearance.

    The name is the last part of the path without the ``_text_document`` that Megatron's
    preprocessing adds. Where two prefixes would share it, they are told apart by the whole last
    part, then by the folders above: ``web.finance`` and ``books.finance``.

    Raises:
        ConfigError: two prefixes cannot be told apart by characters that a name may have.
    """
    keys = list(dict.fromkeys(map(normalise, prefixes)))
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for key in keys:
        groups[_candidate(key, short=True, depth=1)].append(key)
    named: dict[str, str] = {}
    for group in groups.values():
        named.update(_tell_apart(group))
    taken: dict[str, str] = {}
    for key in keys:
        other = taken.setdefault(named[key], key)
        if other != key:
            raise ConfigError(
                f"the data prefixes {other!r} and {key!r} would both be the domain "
                f"{named[key]!r}: name them in a --domain-config"
            )
    return {key: named[key] for key in keys}


def _tell_apart(keys: list[str]) -> dict[str, str]:
    """The shortest kind of name that differs for all of ``keys``; the longest where none does."""
    named: dict[str, str] = {}
    for depth in range(1, max(key.count("/") for key in keys) + 2):
        for short in (True, False):
            named = {key: _candidate(key, short=short, depth=depth) for key in keys}
            if len(set(named.values())) == len(keys):
                return named
    return named


def _candidate(key: str, *, short: bool, depth: int) -> str:
    """The last ``depth`` parts of the path ``key``, in characters that a name may have."""
    parts = [part for part in key.split(os.sep) if part][-depth:] or ["root"]
    if short:
        parts[-1] = re.sub(r"(?<=.)(_text)?_document$", "", parts[-1])
    name = re.sub(r"[^\w.-]", "_", ".".join(parts))
    return name if NAME.fullmatch(name) else f"_{name}"
