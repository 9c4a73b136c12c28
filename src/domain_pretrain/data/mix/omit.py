"""Documents that the stream leaves out: which, and from where on.

A window that holds a token of one has no turn; the prefix's next one comes in its place, so that
every prefix keeps its share and every position of the stream its prefix.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domain_pretrain.data.documents import find_contents
from domain_pretrain.data.mix.section import Cut
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.splits import documents
from domain_pretrain.errors import ConfigError
from domain_pretrain.suggest import did_you_mean

Numbers = tuple[tuple[int, ...], ...]  # of documents, by prefix; ascending


@dataclass(frozen=True)
class Omission:
    """Documents that are left out from some place of the stream on, until the next omission.

    Attributes:
        since: of every prefix, the samples that come before.
        documents: of every prefix.
    """

    since: tuple[int, ...]
    documents: Numbers

    def dump(self) -> list[Any]:
        """JSON values."""
        return [list(self.since), [list(numbers) for numbers in self.documents]]


def documents_of(
    cuts: Sequence[Cut], prefixes: Sequence[str], reading: Reading, *, look_up: bool
) -> Numbers:
    """The documents that a config leaves out.

    Args:
        cuts: of the config.
        prefixes: of the training blend.
        reading: of the run.
        look_up: whether those that are told by their content are looked for, too.

    Raises:
        ConfigError: the training data does not have them.
    """
    own = {normalise(prefix): place for place, prefix in enumerate(prefixes)}
    found: list[set[int]] = [set() for _ in prefixes]
    contents: dict[str, None] = {}
    for cut in cuts:
        contents |= dict.fromkeys(cut.content or ())
        if cut.documents is None or cut.prefix is None:
            continue
        place = own.get(normalise(cut.prefix))
        if place is None:
            raise ConfigError(
                f"mix.skip: {cut.prefix!r} is no prefix of the training data"
                f"{did_you_mean(cut.prefix, prefixes)} (prefixes: {', '.join(prefixes)})"
            )
        for number in cut.documents:
            _check_number(prefixes[place], number, reading)
        found[place].update(cut.documents)
    if contents and look_up:
        for place, numbers in _by_content(contents, prefixes, reading).items():
            found[place] |= numbers
    return tuple(tuple(sorted(numbers)) for numbers in found)


def _check_number(prefix: str, number: int, reading: Reading) -> None:
    index = reading.indices.get(prefix)
    if index is None:
        raise ConfigError(
            f"mix.skip: {prefix!r} is not on this disk, so that it is not known which documents it "
            "has: cut samples instead"
        )
    if number >= index.sequences:
        raise ConfigError(
            f"mix.skip: {prefix!r} has documents 0 to {index.sequences - 1:,}, and no {number:,}"
        )
    training = documents(reading.parts[0], index.sequences)
    if number not in training:
        raise ConfigError(
            f"mix.skip: document {number:,} of {prefix!r} is not for training: --split gives that "
            f"documents {training.start:,} to {training.stop - 1:,}"
        )


def _by_content(
    wanted: Mapping[str, None], prefixes: Sequence[str], reading: Reading
) -> Mapping[int, set[int]]:
    """All documents of the training split that hold one of the contents, by prefix."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    missing, elsewhere = dict(wanted), dict[str, str]()
    for place, prefix in enumerate(prefixes):
        index = reading.indices.get(prefix)
        if index is None:
            continue
        training = documents(reading.parts[0], index.sequences)
        for content, number in find_contents(index, wanted):
            if number in training:
                found[place].add(number)
                missing.pop(content, None)
            else:
                elsewhere[content] = f"; document {number:,} of {prefix!r}, which holds it, is not"
    if missing:
        first = next(iter(missing))
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise ConfigError(
            f"mix.skip: no document that is for training holds the content {first!r}{more}"
            f"{elsewhere.get(first, '')}: domain-pretrain trace --json tells a document's content"
        )
    return found


def continued(
    saved: Sequence[Omission], wanted: Numbers, since: Sequence[int]
) -> tuple[Omission, ...]:
    """What a run leaves out that goes on from a checkpoint: what is behind it does not change.

    Args:
        saved: of the run before.
        wanted: documents, from here on.
        since: of every prefix, the samples that come before here.
    """
    nothing: Numbers = tuple(() for _ in wanted)
    if wanted == (saved[-1].documents if saved else nothing):
        return tuple(saved)
    return (*saved, Omission(tuple(since), wanted))


def saved_omissions(
    order: Mapping[str, Any] | None, prefixes: Sequence[str]
) -> tuple[Omission, ...]:
    """Those in a checkpoint.

    Args:
        order: :meth:`.Order.dump` of the run that wrote it; None: it says nothing of that.
        prefixes: of this run, by which they are told; by position, where files were moved.
    """
    told = ((order or {}).get("mix") or {}).get("omissions", ())
    old = [entry[0] for entry in ((order or {}).get("data") or [None])[0] or ()]
    places = same_places(old, prefixes)
    if not told or places is None:
        return ()
    return tuple(
        Omission(
            tuple(since[place] for place in places),
            tuple(tuple(numbers[place]) for place in places),
        )
        for since, numbers in told
    )


def same_places(old: Sequence[str], prefixes: Sequence[str]) -> Sequence[int] | None:
    """Where each prefix of a run was in that before it: by name, else by position; None where
    there are more or fewer.

    Args:
        old: normalised.
        prefixes: of the run.
    """
    own = [normalise(prefix) for prefix in prefixes]
    if len(old) != len(own):
        return None
    if set(old) != set(own):
        return range(len(own))
    return [old.index(prefix) for prefix in own]
