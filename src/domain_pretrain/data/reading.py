"""What a run is going to read: blends, the parts of them that each split takes, the files behind.

Checked here is what the files tell without a host: that they are there and whole, that each split
finds something in each of them, and that no file counts in two domains.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from domain_pretrain.data import already_read
from domain_pretrain.data.already_read import AlreadyRead
from domain_pretrain.data.blend import Blend
from domain_pretrain.data.index import Index
from domain_pretrain.data.prefixes import check_files
from domain_pretrain.data.splits import WHOLE, Part, check_splits, documents, parse_split
from domain_pretrain.errors import ConfigError
from domain_pretrain.stats import SPLITS


@dataclass(frozen=True)
class Reading:
    """What each split in :data:`SPLITS` reads.

    Attributes:
        blends: of each split; None: it has no data.
        parts: of the documents, for each split; None: it reads nothing.
        indices: prefix, as the blends spell it → its index; without those in an object store, and
            empty where the prefixes are no data prefixes (``--sft``, ``--mock-data``).
        already_read: documents that are not trained on, since a run before has read them.
    """

    blends: tuple[Blend, ...]
    parts: tuple[Part, ...]
    indices: Mapping[str, Index]
    already_read: AlreadyRead | None = None

    def after(self, path: Path | None) -> Reading:
        """The same without the documents that a file says have been read; None: with all.

        Raises:
            ConfigError: the file is none, or of other data.
        """
        if path is None:
            return self
        return replace(self, already_read=already_read.load(path, self.indices))

    def training_tokens(self, prefix: str) -> int:
        """Tokens of the documents of a prefix that are trained on; it must be in :attr:`indices`.

        Reads the lengths of the documents on one side of ``--split``'s cut.
        """
        index = self.indices[prefix]
        rows = documents(self.parts[0], index.sequences)
        found = index.count(rows.start, rows.stop)
        if self.already_read is not None:
            gone = self.already_read.within(prefix, rows)
            found -= int(index.lengths()[gone].sum(dtype="int64"))
        return found

    def trains_on(self, prefix: str, tokens: int) -> bool:
        """Whether there are so many; costs little where there are, and nothing was read before."""
        if self.already_read is not None:
            return self.training_tokens(prefix) >= tokens
        index = self.indices[prefix]
        rows = documents(self.parts[0], index.sequences)
        return index.holds(rows.start, rows.stop, tokens)

    @classmethod
    def check(
        cls,
        blend: Blend,
        blend_per_split: Sequence[Blend] | None,
        split: str | None,
        seq_length: int,
        domain_of: Mapping[str, str],
        *,
        files: bool,
    ) -> Reading:
        """Look at everything that is going to be read.

        Args:
            blend, blend_per_split: as Megatron's ``get_blend_and_blend_per_split`` returns them.
            split: ``--split``.
            seq_length: tokens of a sample.
            domain_of: data prefix, normalised → name of its domain.
            files: whether the prefixes are data prefixes.

        Raises:
            ConfigError: something is missing, wrong, or cannot be read as it is asked for.
        """
        per_split = blend_per_split is not None and any(blend_per_split)
        blends = tuple(blend_per_split or ()) if per_split else (blend,) * len(SPLITS)
        if per_split and split is not None:
            raise ConfigError(
                f"--split {split} with data of a split's own (--train-data-path, …): those are not "
                "split; take one of the two off"
            )
        if per_split:
            parts: tuple[Part, ...] = tuple(None if one is None else WHOLE for one in blends)
        elif blend is None:  # --mock-data
            parts = (WHOLE,) * len(SPLITS)
        elif split is None:
            raise ConfigError("--data-args-path needs --split, as in --split 98,2,0")
        else:
            parts = parse_split(split)
        if not files:
            return cls(blends, parts, {})
        indices = check_files(prefix for one in blends if one for prefix in one[0])
        check_links(domain_of)
        check_splits(blends, parts, indices, seq_length)
        return cls(blends, parts, indices)


def check_links(domain_of: Mapping[str, str]) -> None:
    """Refuse one file under two names, of two domains: its tokens would count in either.

    Args:
        domain_of: data prefix, normalised → name of its domain; files that are not there are no
            concern of this check.

    Raises:
        ConfigError: names the two.
    """
    seen: dict[tuple[int, int], str] = {}
    for prefix, domain in domain_of.items():
        try:
            status = os.stat(f"{prefix}.bin")
        except OSError:
            continue
        other = seen.setdefault((status.st_dev, status.st_ino), prefix)
        if domain_of[other] != domain:
            raise ConfigError(
                f"{other!r} and {prefix!r} are one file through a link, in two domains "
                f"({domain_of[other]} and {domain}): leave one of them out"
            )
