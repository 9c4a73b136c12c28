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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from domain_pretrain.data.index import Index
from domain_pretrain.data.prefixes import as_moved, normalise, places
from domain_pretrain.errors import ConfigError, first_problem
from domain_pretrain.json_file import read_json

KEY = "mix.already_read"


class Said(BaseModel):
    """What the file says of a prefix."""

    model_config = ConfigDict(extra="forbid")

    documents: NonNegativeInt
    tokens: NonNegativeInt
    read: str  # a bit for each document, packed, base64

    def numbers(self, where: str) -> NDArray[np.int64]:
        """Of the documents that were read, ascending.

        Args:
            where: it is said, for an error.

        Raises:
            ConfigError: it cannot be read.
        """
        try:
            packed = np.frombuffer(base64.b64decode(self.read, validate=True), np.uint8)
        except ValueError as error:
            raise ConfigError(f"{where} cannot be used: {error}") from None
        if len(packed) != -(-self.documents // 8):
            raise ConfigError(f"{where} cannot be used: it is cut off; make the plan again")
        bits = np.unpackbits(packed, count=self.documents)
        return np.flatnonzero(bits).astype(np.int64)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    read_by: str
    iteration: NonNegativeInt
    prefixes: dict[str, Said]


@dataclass(frozen=True)
class AlreadyRead:
    """Of the prefixes of a run.

    Attributes:
        path: of the file that says so.
        digest: of what it says; the same wherever the data lie. See :func:`same_digest`.
        documents: prefix, normalised → numbers of its documents, ascending; without those of which
            none was read.
        said: all that the file says, by prefix; also of those that the run does not have.
    """

    path: Path
    digest: str
    documents: Mapping[str, NDArray[np.int64]]
    said: Mapping[str, Said]

    def of(self, prefix: str) -> NDArray[np.int64]:
        """The documents of a prefix, which may have none."""
        return self.documents.get(normalise(prefix), np.zeros(0, np.int64))

    def within(self, prefix: str, rows: range) -> NDArray[np.int64]:
        """Those of them that a split has."""
        first, stop = np.searchsorted(own := self.of(prefix), [rows.start, rows.stop])
        return own[first:stop]

    def beyond(self, indices: Mapping[str, Index]) -> dict[str, Said]:
        """What the file says of other prefixes than these."""
        own = places(_sizes(self.said), _sizes_of(indices)).values()
        return {prefix: one for prefix, one in self.said.items() if prefix not in own}

    def told(self) -> dict[str, str]:
        """For a journal."""
        return {"path": str(self.path), "digest": self.digest}


def content_of(
    run: str,
    iteration: int,
    read: Mapping[str, tuple[Index, NDArray[np.bool_]]],
    before: Mapping[str, Said] | None = None,
) -> dict[str, Any]:
    """What the file holds; JSON values.

    Args:
        run: that has read them, for people.
        iteration: after which.
        read: prefix → its index, and of every document whether it was read.
        before: what was said to that run of prefixes that it has not read; it is said on.
    """
    prefixes = {
        normalise(prefix): {
            "documents": index.sequences,
            "tokens": index.tokens,
            "read": base64.b64encode(np.packbits(documents)).decode(),
        }
        for prefix, (index, documents) in read.items()
    }
    on = {prefix: one.model_dump() for prefix, one in (before or {}).items()}
    return {"read_by": run, "iteration": iteration, "prefixes": {**on, **prefixes}}


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
    keys = places(_sizes(content.prefixes), _sizes_of(indices))
    for prefix, index in indices.items():
        key = keys.get(normalise(prefix))
        if key is None:
            _check_new(prefix, index, content, keys.values(), path)
            continue
        one = content.prefixes[key]
        if (one.documents, one.tokens) != (index.sequences, index.tokens):
            raise ConfigError(
                f"{KEY}: {prefix!r} is not what {content.read_by} has read: {one.tokens:,} → "
                f"{index.tokens:,} tokens in {one.documents:,} → {index.sequences:,} documents; "
                "put the old files back, and give documents that have been added as a prefix of "
                "their own"
            )
        numbers = one.numbers(f"{KEY}: {path}: {key}")
        if len(numbers):
            found[normalise(prefix)] = numbers
    return AlreadyRead(path, _digest(content.prefixes), found, content.prefixes)


def _check_new(
    prefix: str, index: Index, content: _File, found: Collection[str], path: Path
) -> None:
    """A prefix that the file does not have must be none of those that it has, either.

    Args:
        prefix, index: of the run.
        content: of the file, ``path``.
        found: those of its prefixes that the run has.

    Raises:
        ConfigError: it may be one that was moved, and nothing says which.
    """
    own = as_moved(prefix, (index.sequences, index.tokens))
    alike = [
        other
        for other, size in _sizes(content.prefixes).items()
        if other not in found and as_moved(other, size) == own
    ]
    if alike:
        raise ConfigError(
            f"{KEY}: {path}: {prefix!r} has the name, the documents and the tokens of "
            f"{', '.join(alike)}, and may be any of them that was moved: put the files back where "
            f"{content.read_by} read them; if it is none of them, give it a name of its own"
        )


def same_digest(told: str | None, digest: str | None) -> bool:
    """Whether a file is the one that a checkpoint or a journal has told.

    The second half of a digest says whose the documents are. What was written before there was one
    has the first half alone, and goes on.
    """
    if told is None or digest is None or "-" in told:
        return told == digest
    return told == digest.partition("-")[0]


def _digest(said: Mapping[str, Said]) -> str:
    """Of the documents, without names; and with them, as they are within one folder."""
    rooted = {f"/{prefix.lstrip('/')}": one for prefix, one in said.items()}
    folder = os.path.commonpath(map(os.path.dirname, rooted)) if rooted else "/"
    read = {
        os.path.relpath(prefix, folder): (one.documents, one.tokens, one.read)
        for prefix, one in rooted.items()
    }
    halves: Sequence[Any] = (sorted(read.values()), sorted(read.items()))
    return "-".join(hashlib.sha256(json.dumps(half).encode()).hexdigest()[:16] for half in halves)


def _sizes(said: Mapping[str, Said]) -> dict[str, tuple[int, int]]:
    return {prefix: (one.documents, one.tokens) for prefix, one in said.items()}


def _sizes_of(indices: Mapping[str, Index]) -> dict[str, tuple[int, int]]:
    return {normalise(one): (index.sequences, index.tokens) for one, index in indices.items()}
