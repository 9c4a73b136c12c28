"""Data prefixes on disk: a prefix ``P`` stands for Megatron's files ``P.idx`` and ``P.bin``."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Iterable

from domain_pretrain.errors import ConfigError
from domain_pretrain.paths import is_remote

_INDEX_MAGIC = b"MMIDIDX\x00\x00"
_DTYPE_CODE_AT = len(_INDEX_MAGIC) + 8  # after the magic comes a version, uint64
# Bytes per token, by the dtype code of the index.
_ITEM_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 8, 7: 4, 8: 2}
_GLOB = re.compile(r"[*?[]")


def normalise(prefix: str) -> str:
    """One spelling per place: absolute, without ``.`` and ``..``; symbolic links are kept."""
    return prefix if is_remote(prefix) else os.path.abspath(prefix)


def expand(pattern: str) -> list[str]:
    """The prefixes that an entry of ``data`` names.

    Args:
        pattern: a prefix, taken as it is, whether or not its files exist; or a glob (``*``, ``?``,
            ``[…]``, ``**`` for any depth), matched against the ``.idx`` files on disk. A trailing
            ``.idx`` or ``.bin`` is dropped. Relative to the current directory, as Megatron's.

    Returns:
        Prefixes; those of a glob sorted. Empty where a glob matches nothing.

    Raises:
        ConfigError: a glob in an object store, whose files are not listed here.
    """
    pattern = _cut_suffix(pattern)
    if not _GLOB.search(pattern):
        return [pattern]
    if is_remote(pattern):
        raise ConfigError(
            f"{pattern!r} is a glob in an object store, whose files are not listed: name each "
            "prefix"
        )
    return sorted(_cut_suffix(path) for path in glob.iglob(pattern + ".idx", recursive=True))


def nearest(prefix: str, count: int = 3) -> list[str]:
    """Up to ``count`` prefixes or folders on disk that ``prefix`` may have meant."""
    if is_remote(prefix):
        return []
    folder, name = os.path.split(_cut_suffix(prefix))
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    name = _GLOB.split(name)[0]
    try:
        with os.scandir(folder or os.curdir) as entries:
            present = sorted(
                entry.name.removesuffix(".idx")
                for entry in entries
                if entry.name.endswith(".idx") or entry.is_dir()
            )
    except OSError:
        return []
    longer = [entry for entry in present if entry.startswith(name)]
    similar = difflib.get_close_matches(name, present, n=count)
    return [os.path.join(folder, entry) for entry in dict.fromkeys(longer[:count] + similar)][
        :count
    ]


def did_you_mean_prefix(prefix: str) -> str:
    """``"; did you mean 'a', 'b'?"``, or nothing where nothing on disk is near."""
    near = nearest(prefix)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


def check_files(prefixes: Iterable[str]) -> None:
    """Check that the two files of every prefix exist; prefixes in an object store are not checked.

    Not for ``--sft``, whose paths are files of conversations.

    Raises:
        ConfigError: files are missing; names them and the nearest prefixes on disk.
    """
    problems = []
    for prefix in dict.fromkeys(prefixes):
        if is_remote(prefix):
            continue
        for missing in (f"{prefix}{suffix}" for suffix in (".idx", ".bin")):
            if not os.path.isfile(missing):
                # With its .idx in place, the prefix itself is right and has no better spelling.
                hint = did_you_mean_prefix(prefix) if missing.endswith(".idx") else ""
                problems.append(f"{missing!r} does not exist{hint}")
                break
    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ConfigError("data files are missing:\n  " + "\n  ".join(problems[:5]) + more)


def count_tokens(prefix: str) -> int:
    """The number of tokens of a data prefix.

    It is the size of the ``.bin`` file over the item size that the ``.idx`` header names: a
    ``.bin`` file is nothing but tokens, and so 18 bytes are read, where the lengths in an index
    may take gigabytes.

    Raises:
        ConfigError: the files cannot be read, lie in an object store, or are not an index and its
            tokens.
    """
    if is_remote(prefix):
        raise ConfigError(
            f"cannot tell the size of {prefix!r}, which lies in an object store: give the blend by "
            "--data-path, or every domain one prefix and a weight"
        )
    try:
        with open(prefix + ".idx", "rb") as index:
            header = index.read(_DTYPE_CODE_AT + 1)
        size = os.path.getsize(prefix + ".bin")
    except OSError as error:
        raise ConfigError(f"cannot tell the size of {prefix!r}: {error}") from error
    if len(header) <= _DTYPE_CODE_AT or not header.startswith(_INDEX_MAGIC):
        raise ConfigError(f"{prefix + '.idx'!r} is not a Megatron index")
    item_size = _ITEM_SIZE.get(header[_DTYPE_CODE_AT])
    if item_size is None or size % item_size:
        raise ConfigError(
            f"{prefix + '.bin'!r} does not fit its index: {size} bytes, "
            f"dtype code {header[_DTYPE_CODE_AT]}"
        )
    return size // item_size


def _cut_suffix(path: str) -> str:
    return path.removesuffix(".idx").removesuffix(".bin")
