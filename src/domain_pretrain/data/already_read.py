"""Documents that a run before has read, and that are no training data of this one.

Whatever Megatron does to the order of samples from one run to the next (another length of a sample
makes other windows), documents stay what they are: so this is told by document. The stream of a run
is then made of the others alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from domain_pretrain.data.index import Index
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.errors import ConfigError, first_problem
from domain_pretrain.json_file import read_json

KEY = "mix.already_read"


class _Prefix(BaseModel):
    model_config = ConfigDict(extra="forbid")

    documents: NonNegativeInt
    tokens: NonNegativeInt
    read: str  # a bit for each document, packed, base64


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    read_by: str
    iteration: NonNegativeInt
    prefixes: dict[str, _Prefix]


@dataclass(frozen=True)
class AlreadyRead:
    """Of the prefixes of a run.

    Attributes:
        path: of the file that says so.
        digest: of what it says; the same wherever the data lie.
        documents: prefix, normalised → numbers of its documents, ascending; without those of which
            none was read.
    """

    path: Path
    digest: str
    documents: Mapping[str, NDArray[np.int64]]

    def of(self, prefix: str) -> NDArray[np.int64]:
        """The documents of a prefix, which may have none."""
        return self.documents.get(normalise(prefix), np.zeros(0, np.int64))

    def within(self, prefix: str, rows: range) -> NDArray[np.int64]:
        """Those of them that a split has."""
        first, stop = np.searchsorted(own := self.of(prefix), [rows.start, rows.stop])
        return own[first:stop]

    def told(self) -> dict[str, str]:
        """For a journal."""
        return {"path": str(self.path), "digest": self.digest}


def content_of(
    run: str, iteration: int, read: Mapping[str, tuple[Index, NDArray[np.bool_]]]
) -> dict[str, Any]:
    """What the file holds; JSON values.

    Args:
        run: that has read them, for people.
        iteration: after which.
        read: prefix → its index, and of every document whether it was read.
    """
    prefixes = {
        normalise(prefix): {
            "documents": index.sequences,
            "tokens": index.tokens,
            "read": base64.b64encode(np.packbits(documents)).decode(),
        }
        for prefix, (index, documents) in read.items()
    }
    return {"read_by": run, "iteration": iteration, "prefixes": prefixes}


def load(path: Path, indices: Mapping[str, Index]) -> AlreadyRead:
    """Read the file; see :func:`parse`."""
    return parse(read_json(path), path, indices)


def parse(given: Any, path: Path, indices: Mapping[str, Index]) -> AlreadyRead:
    """What the file says, for a run's data.

    Args:
        given: what it holds.
        path: of it.
        indices: of the run, by prefix. One that was moved is known by its name, and by how many
            documents and tokens it has.

    Raises:
        ConfigError: it is no such file, or a prefix is not what it was.
    """
    try:
        content = _File.model_validate(given)
    except ValidationError as error:
        raise ConfigError(f"{KEY}: {path} cannot be used: {first_problem(error)}") from None
    found = {}
    for prefix, index in indices.items():
        key = _place(content.prefixes, prefix, index)
        if key is None:
            continue
        one = content.prefixes[key]
        if (one.documents, one.tokens) != (index.sequences, index.tokens):
            raise ConfigError(
                f"{KEY}: {prefix!r} is not what {content.read_by} has read: {one.tokens:,} → "
                f"{index.tokens:,} tokens in {one.documents:,} → {index.sequences:,} documents; "
                "put the old files back, and give documents that have been added as a prefix of "
                "their own"
            )
        numbers = np.flatnonzero(_bits(one, f"{KEY}: {path}: {key}"))
        if len(numbers):
            found[normalise(prefix)] = numbers.astype(np.int64)
    return AlreadyRead(path, _digest(content), found)


def _place(known: Mapping[str, _Prefix], prefix: str, index: Index) -> str | None:
    """What the file calls a prefix; None: it does not have it."""
    if normalise(prefix) in known:
        return normalise(prefix)
    moved = [
        other
        for other, one in known.items()
        if os.path.basename(other) == os.path.basename(prefix)
        and (one.documents, one.tokens) == (index.sequences, index.tokens)
    ]
    return moved[0] if len(moved) == 1 else None


def _bits(one: _Prefix, where: str) -> NDArray[np.bool_]:
    try:
        packed = np.frombuffer(base64.b64decode(one.read, validate=True), np.uint8)
    except ValueError as error:
        raise ConfigError(f"{where} cannot be used: {error}") from None
    if len(packed) != -(-one.documents // 8):
        raise ConfigError(f"{where} cannot be used: it is cut off; make the plan again")
    return np.unpackbits(packed, count=one.documents).astype(bool)


def _digest(content: _File) -> str:
    told: Sequence[Any] = sorted(
        (one.documents, one.tokens, one.read) for one in content.prefixes.values()
    )
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
