"""Which tokenizer made the ids, told by the content of its files: folders move, names stay."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.paths import is_remote

# In a folder, the first of these that is there; the prepared data's manifests hash the same file.
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer by its place and its content.

    Attributes:
        name: file, folder, or name on a hub; the type where it has neither.
        sha256: of its file; None where that is not on this disk, or there is none.
    """

    name: str | None
    sha256: str | None

    @classmethod
    def of(cls, flags: Any) -> Tokenizer:
        """Of a run.

        Args:
            flags: an object with Megatron's names; those that it lacks count as not given.
        """
        places = ("tokenizer_name_or_path", "tokenizer_model", "vocab_file")
        given = [str(place) for name in places if (place := getattr(flags, name, None))]
        if not given:
            return cls(getattr(flags, "tokenizer_type", None), None)
        return cls(given[0], None if is_remote(given[0]) else _sha256(Path(given[0])))

    def dump(self) -> dict[str, Any]:
        """For a checkpoint."""
        return asdict(self)

    @staticmethod
    def same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        """Whether two that were dumped are one, as far as can be told."""
        if before["sha256"] and now["sha256"]:
            return bool(before["sha256"] == now["sha256"])
        return bool(before["name"] == now["name"])


def _sha256(path: Path) -> str | None:
    try:
        if path.is_dir():
            path = next((path / name for name in _FILES if (path / name).is_file()), path)
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, ValueError):  # a name that no file can have, too
        return None
