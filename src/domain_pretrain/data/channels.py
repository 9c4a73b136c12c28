"""Domains within a file: a number for each of its documents, beside it.

``prepare --channel-key`` writes ``PREFIX.channels.npy``, int16 by document, and the channels in the
order of these numbers into the manifest, ``{"channels": [{"name": …}, …]}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.data.domain import Domain
from domain_pretrain.data.index import Index
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.errors import ConfigError
from domain_pretrain.json_file import read_json
from domain_pretrain.prepare.manifest import manifest_path
from domain_pretrain.prepare.values import domain_name

NUMBERS = ".channels.npy"


@dataclass(frozen=True)
class Channels:
    """The channels of one data prefix.

    Attributes:
        path: of their numbers, int16 by document, each the place of its name.
        names: of the channels, as domains are spelled; ``/`` parts them.
    """

    path: Path
    names: tuple[str, ...]

    @classmethod
    def read(cls, prefix: str, index: Index) -> Channels:
        """Those beside a prefix, checked against it.

        Args:
            prefix: as the data flag spells it.
            index: of its documents.

        Raises:
            ConfigError: a file is missing or broken, or is of other data.
        """
        path, manifest = Path(prefix + NUMBERS), manifest_path(prefix)
        for file in (path, manifest):
            if not file.is_file():
                raise ConfigError(
                    f"{str(file)!r} is not there, and the config says `channels: true` of this "
                    "data: prepare it with --channel-key, or take the line out"
                )
        names = _names(read_json(manifest))
        if names is None:
            raise ConfigError(
                f"{str(manifest)!r} has no 'channels' with a name each: prepare "
                "the data with --channel-key, or take `channels: true` out of the config"
            )
        try:
            numbers = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{str(path)!r} cannot be read: {error}") from None
        if numbers.dtype != np.int16 or numbers.shape != (index.sequences,):
            raise ConfigError(
                f"{str(path)!r} holds {numbers.dtype} {list(numbers.shape)}, and the data has "
                f"{index.sequences:,} documents: it is of other data; prepare both again"
            )
        return cls(path, names)

    def check_numbers(self) -> None:
        """Read all of them, once a run.

        Raises:
            ConfigError: one is no channel's.
        """
        numbers = _mapped(self.path)
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self.names):
            raise ConfigError(
                f"{str(self.path)!r} has the numbers {numbers.min()} to {numbers.max()}, and the "
                f"manifest beside it has {len(self.names)} channels"
            )


@cache
def _mapped(path: Path) -> NDArray[np.int16]:
    """The numbers, for as long as the process lives: it looks them up for every sample."""
    found: NDArray[np.int16] = np.load(path, mmap_mode="r")
    return found


def _names(manifest: Any) -> tuple[str, ...] | None:
    """Of the channels; None where the manifest does not tell them."""
    try:
        names = tuple(channel["name"] for channel in manifest["channels"])
    except (KeyError, TypeError):
        return None
    if not names or not all(isinstance(name, str) for name in names):
        return None
    spelled = tuple("/".join(map(domain_name, name.split("/"))) for name in names)
    return spelled if len(set(spelled)) == len(names) else None


@dataclass(frozen=True)
class DocumentDomains:
    """Whose each document of one prefix is.

    Attributes:
        path: of the channels' numbers; None: all documents are of one domain.
        domains: domain index by channel; of that one domain, without channels.
    """

    path: Path | None
    domains: tuple[int, ...]

    def of(self, documents: NDArray[np.int64]) -> NDArray[np.int16]:
        """Domain index of each of the documents, int16 of the same shape."""
        if self.path is None:
            return np.full(documents.shape, self.domains[0], np.int16)
        found: NDArray[np.int16] = self._table[_mapped(self.path)[documents]]
        return found

    @cached_property
    def _table(self) -> NDArray[np.int16]:
        return np.array(self.domains, np.int16)


def read_channels(
    domains: Mapping[str, Domain], domain_of: Mapping[str, str], indices: Mapping[str, Index]
) -> dict[str, Channels]:
    """The channels of every prefix of a domain that has them, by its normalised spelling.

    Args:
        domains: of the config.
        domain_of: data prefix, normalised → name of its domain.
        indices: of the prefixes on this machine's disk, as the data flags spell them.

    Raises:
        ConfigError: see :meth:`Channels.read`; or the data is not on this disk.
    """
    on_disk = {normalise(prefix): (prefix, index) for prefix, index in indices.items()}
    found = {}
    for key, name in domain_of.items():
        if name not in domains or not domains[name].channels:
            continue
        if key not in on_disk:
            raise ConfigError(
                f"domain {name!r} has `channels: true`, and {key!r} is not on this machine's disk, "
                "where the channels of its documents would be looked up"
            )
        found[key] = Channels.read(*on_disk[key])
    return found


def leaves_of(domain: str, names: tuple[str, ...]) -> list[str]:
    """The domains that a name of the config stands for: its channels, or itself."""
    return [name for name in names if name == domain or name.startswith(f"{domain}/")]
