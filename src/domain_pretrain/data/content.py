"""Whether the content of the data files fits the run; one process looks, it is the same for all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from domain_pretrain.data.index import Index
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.tokenizer import Tokenizer
from domain_pretrain.data.vocabulary import padded, vocabulary
from domain_pretrain.errors import ConfigError
from domain_pretrain.prepare.manifest import Manifest, manifest_path
from domain_pretrain.process import notice

# Ids that are looked at: so many in a row, at so many places of all files together.
_RUN = 4096
_PLACES = 2048
_LEAST_PLACES = 4  # of one file


def check_content(reading: Reading, flags: Any) -> None:
    """Look at the lengths of the documents, at what the manifests say, and at ids here and there.

    Args:
        reading: what the run is going to read.
        flags: an object with the host's settings, under the names of Megatron-LM's flags.

    Raises:
        ConfigError: data of another tokenizer than that of other data or of the run, ids beyond
            the embedding, or damage.
    """
    for index in reading.indices.values():
        index.check_lengths()
    size = vocabulary(flags, reading.indices)
    if size is not None and getattr(flags, "tokenizer_type", None) == "NullTokenizer":
        size += 1  # Megatron up to 0.17 adds the end of a document
    limit = None if size is None else padded(size, flags)
    check_manifests(read_manifests(reading.indices), Tokenizer.of(flags), limit)
    if limit is not None:
        check_ids(reading.indices, limit)


def read_manifests(prefixes: Iterable[str]) -> dict[str, Manifest]:
    """What ``domain-pretrain prepare`` left beside the data; other files of that name are told."""
    found = {}
    for prefix in prefixes:
        if manifest_path(prefix).is_file():
            try:
                found[prefix] = Manifest.load(prefix)
            except ConfigError as error:
                notice(f"WARNING: not used: {error}")
    return found


def check_manifests(
    manifests: Mapping[str, Manifest], tokenizer: Tokenizer, limit: int | None
) -> None:
    """Check that all data were made by one tokenizer, the run's.

    Args:
        manifests: prefix → its manifest.
        tokenizer: of the run; one without a file of its own (``NullTokenizer``) fits any.
        limit: rows of the embedding; None: not known.

    Raises:
        ConfigError: names the data and both tokenizers.
    """
    first = next(iter(manifests.items()), None)
    for prefix, manifest in manifests.items():
        assert first is not None
        if _made_by(manifest) != _made_by(first[1]):
            raise ConfigError(
                f"{first[0]!r} was prepared with the tokenizer {_named(first[1])}, and {prefix!r} "
                f"with {_named(manifest)}: the same ids mean other texts; prepare one of them again"
            )
        if tokenizer.sha256 and manifest.tokenizer_sha256 != tokenizer.sha256:
            raise ConfigError(
                f"{prefix!r} was prepared with the tokenizer {_named(manifest)}, and the run's is "
                f"{tokenizer.name} (sha256 {tokenizer.sha256[:12]}): give that one, or prepare the "
                "data again"
            )
        if limit is not None and manifest.vocab_size > limit:
            raise ConfigError(
                f"{prefix!r} was prepared with a vocabulary of {manifest.vocab_size:,} ids, and "
                f"the model's is padded to {limit:,}: train with "
                f"{' '.join(manifest.megatron_flags)}"
            )


def check_ids(indices: Mapping[str, Index], limit: int) -> None:
    """Look for ids that the embedding has no row for, at places spread evenly over each file.

    Args:
        indices: prefix → its index.
        limit: rows of the embedding.

    Raises:
        ConfigError: names the first id found.
    """
    places = max(_LEAST_PLACES, _PLACES // max(1, len(indices)))
    for prefix, index in indices.items():
        ids = np.memmap(f"{prefix}.bin", index.dtype, "r", shape=(index.tokens,))
        last = max(0, index.tokens - _RUN)
        for start in dict.fromkeys(np.linspace(0, last, places, dtype=np.int64).tolist()):
            run = ids[start : start + _RUN]
            wrong = np.flatnonzero((run < 0) | (run >= limit))
            if wrong.size:
                at = start + int(wrong[0])
                raise ConfigError(
                    f"{prefix + '.bin'!r} holds the id {int(ids[at]):,} (token {at:,}), and the "
                    f"model's vocabulary is padded to {limit:,}: the data were made with another "
                    "tokenizer, or --vocab-size is too small"
                )


def _made_by(manifest: Manifest) -> tuple[str | None, int]:
    return manifest.tokenizer_sha256, manifest.vocab_size


def _named(manifest: Manifest) -> str:
    digest = manifest.tokenizer_sha256
    told = f"sha256 {digest[:12]}, " if digest else ""
    return f"{manifest.tokenizer} ({told}{manifest.vocab_size:,} ids)"
