"""Which sample comes when: what decides it, and what a resumed run has changed of it.

Megatron shuffles each prefix by its documents, the split, the seed and the length of a sample,
blends the prefixes by their weights, and on resuming skips as many samples as were consumed.
Whatever changes the order makes that skip miss: samples are read a second time, others never.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from domain_pretrain.data.already_read import KEY, same_digest
from domain_pretrain.data.blend import Blend
from domain_pretrain.data.mix.change import changes
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import normalise, places
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.tokenizer import Tokenizer
from domain_pretrain.stats import SPLITS

MOST_TOLD = 3
_TOLERANCE = 1e-9  # of a share: weights may come from another order of additions


@dataclass(frozen=True)
class Order:
    """What decides the order of a run's samples; JSON values throughout.

    Attributes:
        data: for each split in :data:`SPLITS`, ``[prefix, share, sequences, tokens]`` of every
            prefix of its blend, in order; share None: by size; counts None: not known here. None:
            the split has no data.
        parts: of the documents, for each split.
        settings: seed, length of a sample and so on, by the name of the flag.
        tokenizer: what made the ids.
        samples: that the whole run asks for.
        mix: :meth:`.Plan.dump` of the plugin's stream; None: the order is Megatron's own.
        once: beside ``mix``: whether Megatron's own blend would read no prefix a second time for
            so many samples; then its order is that of a stream with the same weights.
    """

    data: Sequence[Sequence[Sequence[Any]] | None]
    parts: Sequence[Sequence[float] | None]
    settings: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    samples: int | None
    mix: Mapping[str, Any] | None = None
    once: bool = False

    @classmethod
    def of(
        cls,
        reading: Reading,
        settings: Mapping[str, Any],
        tokenizer: Tokenizer,
        samples: int | None,
        *,
        surplus: float = 0.0,
        plan: Plan | None = None,
    ) -> Order:
        """Of a run that is about to start.

        Args:
            reading: what it reads.
            settings: see :attr:`settings`.
            tokenizer: of the run.
            samples: that it asks for.
            surplus: part of a prefix's samples that Megatron asks for beyond those.
            plan: of the plugin's stream.
        """
        return cls(
            [_entries(blend, reading) for blend in reading.blends],
            [None if part is None else list(part) for part in reading.parts],
            dict(settings),
            tokenizer.dump(),
            samples,
            *(() if plan is None else (plan.dump(), _reads_once(reading, settings, plan, surplus))),
        )

    def dump(self) -> dict[str, Any]:
        """For a checkpoint; what is the same for all splits is there once."""
        data = list(self.data)
        same = [one == data[0] and index > 0 for index, one in enumerate(data)]
        return {
            "data": ["as train" if equal else one for equal, one in zip(same, data, strict=True)],
            "parts": list(self.parts),
            "settings": dict(self.settings),
            "tokenizer": dict(self.tokenizer),
            "samples": self.samples,
            **({} if self.mix is None else {"mix": dict(self.mix), "once": self.once}),
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Order:
        """The inverse of :meth:`dump`."""
        train = state["data"][0]
        return cls(
            [train if one == "as train" else one for one in state["data"]],
            state["parts"],
            state["settings"],
            state["tokenizer"],
            state["samples"],
            state.get("mix"),
            state.get("once", False),
        )


def breaks(before: Order, now: Order, consumed: int = 0) -> Iterator[str]:
    """Changes after which training samples are read again or never, each as old → new.

    Args:
        before, now: of the run that wrote a checkpoint, and of the one that goes on from it.
        consumed: samples that the first has trained on.
    """
    yield from breaks_of_epochs(before, now)
    yield from _data_changes(before.data[0] or [], now.data[0] or [])
    yield from _mix_changes(before, now, consumed)


def breaks_of_epochs(before: Order, now: Order) -> Iterator[str]:
    """Of these changes, those after which every prefix is another row of samples."""
    for name in dict.fromkeys([*before.settings, *now.settings]):
        old, new = before.settings.get(name), now.settings.get(name)
        if old != new and not (name == KEY and same_digest(old, new)):
            yield f"{name} {old} → {new}"
    if not _close(before.parts[0], now.parts[0]):
        yield f"the training part of --split {_percent(before.parts[0])} → {_percent(now.parts[0])}"
    if not Tokenizer.same(before.tokenizer, now.tokenizer):
        yield f"tokenizer {_name(before.tokenizer)} → {_name(now.tokenizer)}"


def remarks(before: Order, now: Order) -> Iterator[str]:
    """Changes that a person should know of, though every training sample comes in its turn."""
    for index in range(1, len(SPLITS)):
        old, new = before.data[index], now.data[index]
        old_part, new_part = before.parts[index], now.parts[index]
        changed = list(_data_changes(old or [], new or [])) if old_part and new_part else []
        if not _close(old_part, new_part):
            changed.append(f"{_percent(old_part)} → {_percent(new_part)}")
        if changed:
            yield f"another {SPLITS[index]} split ({'; '.join(changed)})"
    # The plugin's stream shuffles every pass by itself.
    again = [] if before.mix and now.mix else list(_repeated(before, now))
    if before.samples != now.samples and again:
        yield (
            f"another number of samples ({before.samples} → {now.samples}): {_few(again)}, "
            "read more than once, comes in another order from here"
        )


def validation_changes(
    before: Order, now: Order, old: Collection[str], new: Collection[str]
) -> Iterator[str]:
    """Changes after which some prefixes' validation samples are others, each as old → new.

    Args:
        before, now: of the run that wrote a checkpoint, and of the one that goes on from it.
        old, new: the prefixes that are asked about, in either.
    """
    # Without weights: they say how often a sample is read, not what is in it.
    entries = [
        [[prefix, None, *counts] for prefix, _, *counts in of.data[1] or () if prefix in asked]
        for of, asked in ((before, old), (now, new))
    ]
    yield from _data_changes(*entries)
    if not _close(before.parts[1], now.parts[1]):
        parts = (before.parts[1], now.parts[1])
        yield f"the validation part of --split {' → '.join(map(_percent, parts))}"


def _entries(blend: Blend, reading: Reading) -> list[list[Any]] | None:
    if blend is None:
        return None
    prefixes, weights = blend
    total = math.fsum(weights) if weights else 0.0
    entries = []
    for position, prefix in enumerate(prefixes):
        index = reading.indices.get(prefix)
        share = weights[position] / total if weights else None
        counts = (None, None) if index is None else (index.sequences, index.tokens)
        entries.append([normalise(prefix), share, *counts])
    return entries


def _mix_changes(before: Order, now: Order, consumed: int) -> Iterator[str]:
    if before.mix is None and now.mix is None:
        return
    found = list(changes(before.mix or _blend(before), now.mix or _blend(now), consumed))
    yield from found
    if found or (before.mix and now.mix):
        return
    own, mixed = (before, now) if before.mix is None else (now, before)
    if mixed is before and mixed.mix and mixed.mix.get("taken"):
        yield "the plugin's stream, which goes on from another blend, → Megatron's own blend"
    elif not (mixed.once and (own.samples or 0) <= (mixed.samples or 0)):
        ways = ("Megatron's own blend", "the plugin's stream")
        old, new = ways if own is before else ways[::-1]
        yield f"{old} → {new}, which has another order where a prefix is read more than once"


def _blend(order: Order) -> dict[str, Any]:
    """Megatron's own blend, as a stream of one stage."""
    shares = [entry[1] for entry in order.data[0] or ()]
    by_size = any(share is None for share in shares)
    return {"stages": [[None, None if by_size else shares, "constant"]], "cuts": []}


def _reads_once(reading: Reading, settings: Mapping[str, Any], plan: Plan, surplus: float) -> bool:
    """Whether all that Megatron's blend would ask for is in one pass of every prefix."""
    blend, part, length = reading.blends[0], reading.parts[0], settings.get("--seq-length")
    if blend is None or part is None or not length:
        return False
    prefixes, weights = blend
    if weights is None and len(prefixes) > 1:
        return True  # it makes one pass
    weights = weights or [1.0]
    total = math.fsum(weights)
    for prefix, weight in zip(prefixes, weights, strict=True):
        wanted = math.ceil((math.ceil(plan.samples * weight / total) + 1) * (1 + surplus))
        if prefix not in reading.indices or not reading.trains_on(prefix, wanted * length + 1):
            return False
    return True


def _data_changes(before: Sequence[Any], now: Sequence[Any]) -> Iterator[str]:
    """In the words of a person; nothing where all that has changed are the places of the files."""
    moved = places(_sizes(before), _sizes(now))
    if all(_same(old, new, moved) for old, new in zip_longest(before, now)):
        return
    old_of, new_of = {one[0]: one for one in before}, {one[0]: one for one in now}
    gone = [prefix for prefix in old_of if prefix not in new_of]
    come = [prefix for prefix in new_of if prefix not in old_of]
    if gone:
        yield f"gone {_few(gone)}"
    if come:
        yield f"new {_few(come)}"
    both = [(old, new_of[prefix]) for prefix, old in old_of.items() if prefix in new_of]
    sizes = [
        f"{old[0]} {old[3]:,} → {new[3]:,} tokens in {old[2]:,} → {new[2]:,} documents"
        for old, new in both
        if None not in (*old[2:], *new[2:]) and old[2:] != new[2:]
    ]
    if sizes:
        yield f"other content: {_few(sizes)}"
    shares = [
        f"{old[0]} {_share(old[1])} → {_share(new[1])}"
        for old, new in both
        if not _close([old[1]], [new[1]])
    ]
    if shares:
        yield f"other weights: {_few(shares)}"
    if not (gone or come or sizes or shares):
        yield "the prefixes in another order, or as often"


def _sizes(entries: Sequence[Any]) -> dict[str, tuple[int, int] | None]:
    return {one[0]: None if one[2] is None else tuple(one[2:]) for one in entries}


def _same(old: Sequence[Any] | None, new: Sequence[Any] | None, moved: Mapping[str, str]) -> bool:
    """Whether two entries give the same samples: files that were moved do."""
    if old is None or new is None or not _close([old[1]], [new[1]]):
        return False
    return old[2:] == new[2:] and moved.get(new[0]) == old[0]


def _repeated(before: Order, now: Order) -> Iterator[str]:
    """Prefixes that either reads more than once: Megatron shuffles all passes together."""
    length, part = now.settings.get("--seq-length"), now.parts[0]
    samples = max(before.samples or 0, now.samples or 0)
    if not length or part is None:
        return
    for prefix, share, _, tokens in now.data[0] or ():
        alone = len(now.data[0] or ()) == 1
        if share is None:
            share = 1.0 if alone else 0.0  # without weights, a blend has one pass of each
        wanted = share * samples * length
        if tokens is not None and wanted > tokens * (part[1] - part[0]):
            yield prefix


def _close(old: Sequence[float | None] | None, new: Sequence[float | None] | None) -> bool:
    if old is None or new is None:
        return old is new
    return all(
        one is other
        if one is None or other is None
        else math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        for one, other in zip(old, new, strict=True)
    )


def _percent(part: Sequence[float] | None) -> str:
    return "none" if part is None else f"{part[0]:.4%}-{part[1]:.4%}"


def _share(share: float | None) -> str:
    return "by size" if share is None else f"{share:.4%}"


def _name(tokenizer: Mapping[str, Any]) -> str:
    digest = tokenizer.get("sha256")
    return f"{tokenizer.get('name')}" + (f" ({digest[:12]})" if digest else "")


def _few(texts: Sequence[str]) -> str:
    more = len(texts) - MOST_TOLD
    return ", ".join(texts[:MOST_TOLD]) + (f" and {more} more" if more > 0 else "")
