"""``--split``: which documents of a prefix are for training, validation and test.

Megatron cuts every prefix at its documents, and reads them again until it has enough samples: where
a split has no token of a prefix, it never has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from domain_pretrain.data.blend import Blend
from domain_pretrain.data.index import Index
from domain_pretrain.errors import ConfigError
from domain_pretrain.stats import SPLITS

DEFAULT = "969,30,1"  # Megatron's, of --data-path
MOST_TOLD = 5

# The part of the documents that a split begins and ends at; None where it has none.
Part = tuple[float, float] | None
WHOLE: Part = (0.0, 1.0)


def parse_split(text: str) -> tuple[Part, ...]:
    """The part of every split in :data:`SPLITS`.

    Args:
        text: of ``--split``: up to three numbers, separated by whatever is no part of one; a shell
            script may leave quotes in it.

    Raises:
        ConfigError: Megatron would read something else, or divide by zero.
    """
    words = re.findall(r"[.0-9]+", text)  # as the host does
    try:
        shares = [float(word) for word in words]
    except ValueError:
        shares = []
    misread = re.search(r"[\w+-]", re.sub(r"[.0-9]+", "", text))  # signs, exponents, words
    if misread or not 1 <= len(shares) <= len(SPLITS) or not sum(shares) > 0:
        raise ConfigError(
            f"--split {text!r} must be up to three numbers, for training, validation and test, as "
            f"in {DEFAULT}, and not all of them zero"
        )
    total = sum(shares)
    edges = [0.0]
    for share in shares:
        edges.append(edges[-1] + share / total)
    parts: list[Part] = [(first, stop) if stop > first else None for first, stop in pairwise(edges)]
    return (*parts, *[None] * (len(SPLITS) - len(parts)))


def documents(part: Part, count: int) -> range:
    """Which of ``count`` documents a part has, rounded as the host rounds."""
    if part is None:
        return range(0)
    return range(round(part[0] * count), round(part[1] * count))


def check_splits(
    blends: Sequence[Blend],
    parts: Sequence[Part],
    indices: Mapping[str, Index],
    seq_length: int,
) -> None:
    """Check that every split has something to read of every prefix.

    Args:
        blends: of the train, valid and test split.
        parts: of the documents, for each; None: the split reads nothing.
        indices: of the prefixes; those that are missing, in an object store, are not checked.
        seq_length: tokens of a sample.

    Raises:
        ConfigError: names prefix and split, and what to do.
    """
    found = list(_problems(blends, parts, indices, seq_length))
    if found:
        more = f"\n  and {len(found) - MOST_TOLD} more" if len(found) > MOST_TOLD else ""
        raise ConfigError(
            "a split has nothing to read:\n  "
            + "\n  ".join(found[:MOST_TOLD])
            + more
            + "\n  give --split larger parts (0 for what is not wanted), more documents, or data "
            "of the split's own (--valid-data-path)"
        )


def _problems(
    blends: Sequence[Blend],
    parts: Sequence[Part],
    indices: Mapping[str, Index],
    seq_length: int,
) -> Iterator[str]:
    for split, blend, part in zip(SPLITS, blends, parts, strict=True):
        if blend is None or part is None:
            continue
        prefixes, weights = blend
        # Without weights it takes what one pass gives, and stops where that is no sample.
        needed = seq_length + 1 if weights is None and len(prefixes) > 1 else 1
        for prefix in dict.fromkeys(prefixes):
            index = indices.get(prefix)
            if index is None:
                continue
            rows = documents(part, index.sequences)
            if not rows:
                yield (
                    f"{prefix!r} has {index.sequences:,} documents, of which the {split} split "
                    "gets none: Megatron would hang"
                )
            elif not index.holds(rows.start, rows.stop, needed):
                yield (
                    f"{prefix!r}: the {split} split's {len(rows):,} documents have fewer than "
                    f"{needed:,} tokens"
                    + (f", one sample of --seq-length {seq_length}" if needed > 1 else "")
                )
