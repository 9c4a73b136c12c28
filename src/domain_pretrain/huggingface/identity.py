"""Which model a Hugging Face folder holds: by the content of all that is imported of it.

Checkpoints of one model have the same config and files of the same sizes; only the bytes of their
weights tell them apart. To read 140 GB at every start of a run would be too much: what a file held
is remembered beside the import, with all that changes when the file is written again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.huggingface.base import RECORD, imported_beside, read_record
from domain_pretrain.huggingface.safetensors_file import weight_files
from domain_pretrain.whole_file import whole_file

_BLOCK = 1 << 22  # bytes


@dataclass(frozen=True)
class Read:
    """A file, as it was when its content was read.

    Attributes:
        path: of the file itself, where the folder has a link to it, as a cache of the hub does.
        size: bytes.
        mtime_ns: when it was last written.
        inode: another one where another file has taken its name.
        sha256: of its content.
    """

    path: str
    size: int
    mtime_ns: int
    inode: int
    sha256: str

    @classmethod
    def of(cls, path: Path, known: Iterable[Read]) -> Read:
        """Read, unless it is one that is known and that has not been written since."""
        stat = path.stat()  # before it is read: what is written meanwhile is read again next time
        stamp = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino)
        for one in known:
            if (one.path, one.size, one.mtime_ns, one.inode) == stamp:
                return one
        return cls(*stamp, _sha256(path))


Files = dict[str, Read]
"""By the names that they have in the model's folder."""


def read_files(folder: Path, known: Iterable[Read] = ()) -> Iterator[tuple[str, Read]]:
    """All that is imported of a Hugging Face folder, one after the other; no other file counts.

    Args:
        folder: with the model.
        known: what was read before, of this model or others.

    Raises:
        ConfigError: a file is missing.
    """
    known = list(known)
    for path in (*imported_beside(folder), *weight_files(folder)):
        yield path.name, Read.of(path, known)


def same(one: Files, other: Files) -> bool:
    """Whether they hold the same, wherever and whenever that was read."""
    return _contents(one) == _contents(other)


def digest_of(files: Files) -> str:
    """One for all of them."""
    return hashlib.sha256(json.dumps(sorted(_contents(files).items())).encode()).hexdigest()


def _contents(files: Files) -> dict[str, str]:
    return {name: read.sha256 for name, read in files.items()}


def _sha256(path: Path) -> str:
    """Of a file of any size; hashlib.file_digest is of Python 3.11."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def write_record(out: Path, source: str, files: Files) -> None:
    """Say where a base comes from, and what was read there."""
    content: dict[str, Any] = {"source": source}
    content["files"] = {name: asdict(read) for name, read in files.items()}
    with whole_file(out / RECORD) as file:
        file.write((json.dumps(content, indent=2) + "\n").encode())


def recorded(out: Path) -> Files | None:
    """What was read when a folder was imported; None: a version that read no weights made it.

    Raises:
        ConfigError: its record cannot be read.
    """
    try:
        return {name: Read(**read) for name, read in read_record(out)["files"].items()}
    except (KeyError, AttributeError, TypeError):
        return None
