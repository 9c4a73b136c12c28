"""Data prefixes on disk: a prefix ``P`` stands for Megatron's files ``P.idx`` and ``P.bin``."""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import takewhile

from domain_pretrain.data.index import Index
from domain_pretrain.errors import ConfigError
from domain_pretrain.paths import is_remote

MOST_TOLD = 5
_GLOB = re.compile(r"[*?[]")


def normalise(prefix: str) -> str:
    """One spelling per place: absolute, without ``.`` and ``..``; symbolic links are kept."""
    return prefix if is_remote(prefix) else os.path.abspath(prefix)


def places(before: Mapping[str, Hashable], now: Mapping[str, Hashable]) -> dict[str, str]:
    """Where each prefix was before: files that were moved, whole folders often, are the same.

    A prefix is the one of its path. Else it is, of those that are gone, the one of its name and its
    size; of several, as shards are, the one whose folders have most of its folders' names, and none
    where that is no single one. Its size alone tells nobody: shards are often as large.

    Args:
        before, now: prefix, normalised → all that is known of its size; None: nothing is.

    Returns:
        Prefix now → prefix before, of those that have one.
    """
    found = {prefix: prefix for prefix in now if prefix in before}
    alike: dict[Hashable, tuple[list[str], list[str]]] = {}
    for side, (own, others) in enumerate(((before, now), (now, before))):
        for prefix, size in own.items():
            if prefix not in others and size is not None:
                alike.setdefault(as_moved(prefix, size), ([], []))[side].append(prefix)
    for gone, come in alike.values():
        for prefix in come:
            other = _closest(prefix, gone)
            if other is not None and _closest(other, come) == prefix:
                found[prefix] = other
    return found


def as_moved(prefix: str, size: Hashable) -> Hashable:
    """What a prefix keeps where its files are moved: its name, and its size."""
    return os.path.basename(prefix), size


def _closest(prefix: str, others: Sequence[str]) -> str | None:
    """The one that ends like it, by folders; None: there is none, or several do."""
    ends = [_common_end(prefix, other) for other in others]
    best = max(ends, default=0)
    return others[ends.index(best)] if ends.count(best) == 1 else None


def _common_end(one: str, other: str) -> int:
    pairs = zip(reversed(one.split("/")), reversed(other.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


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
    # A name may have brackets of its own: wiki[zh].
    if not _GLOB.search(pattern) or os.path.isfile(f"{pattern}.idx"):
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


def check_files(prefixes: Iterable[str]) -> dict[str, Index]:
    """Check that the two files of every prefix exist, and that they fit each other.

    Not for ``--sft``, whose paths are files of conversations.

    Returns:
        The index of every prefix, each once; without those in an object store, which are not
        checked.

    Raises:
        ConfigError: names what is wrong with the first few, and the nearest prefixes on disk.
    """
    found: dict[str, Index] = {}
    problems: list[str] = []
    wrong = 0
    for prefix in dict.fromkeys(prefixes):
        if is_remote(prefix):
            continue
        try:
            found[prefix] = _read(prefix)
        except ConfigError as error:
            wrong += 1
            if len(problems) < MOST_TOLD:
                problems.append(f"{error}{_hint(prefix)}")
    if problems:
        more = f"\n  and {wrong - len(problems)} more" if wrong > len(problems) else ""
        raise ConfigError("data files are missing or wrong:\n  " + "\n  ".join(problems) + more)
    return found


def _read(prefix: str) -> Index:
    for path in (f"{prefix}.idx", f"{prefix}.bin"):
        if not os.path.isfile(path):
            raise ConfigError(f"{path!r} does not exist")
    return Index.read(prefix)


def _hint(prefix: str) -> str:
    # With its .idx in place, the prefix itself is right and has no better spelling.
    return "" if os.path.isfile(f"{prefix}.idx") else did_you_mean_prefix(prefix)


def count_tokens(prefix: str) -> int:
    """The number of tokens of a data prefix.

    Raises:
        ConfigError: it lies in an object store; or see :meth:`Index.read`.
    """
    if is_remote(prefix):
        raise ConfigError(
            f"cannot tell the size of {prefix!r}, which lies in an object store: give the blend by "
            "--data-path, or every domain one prefix and a weight"
        )
    return Index.read(prefix).tokens


def _cut_suffix(path: str) -> str:
    return path.removesuffix(".idx").removesuffix(".bin")
