"""A resumed run must mean by its domains what the run before it meant."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from domain_pretrain.data.order import (
    Order,
    breaks,
    breaks_of_epochs,
    remarks,
    validation_changes,
)
from domain_pretrain.data.resumption import ACCOUNT
from domain_pretrain.errors import ConfigError

# How many differences a message tells of.
MOST_TOLD = 5
_CONTINUE = (
    "mix.on_change: continue in the config to go on with each data prefix where it stood "
    "(docs/mixing.md), or "
)


@dataclass(frozen=True)
class Meaning:
    """What decides whose a token is and what it weighs; it goes with the state of a checkpoint.

    Attributes:
        names: the domains.
        prefixes: data prefix → domain.
        settings: what the config says besides its defaults, by dotted key; JSON values.
        order: which sample comes when; None where the run trains on nothing.
    """

    names: tuple[str, ...]
    prefixes: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    order: Order | None = None

    def dump(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {
            "domains": list(self.names),
            "prefixes": dict(self.prefixes),
            "settings": dict(self.settings),
            **({} if self.order is None else {"order": self.order.dump()}),
        }


def check_continuity(
    saved: Mapping[str, Any],
    now: Meaning,
    *,
    allow: bool,
    continued: bool = False,
    consumed: int = 0,
) -> list[str]:
    """Compare what a checkpoint's run meant with what this one means.

    Args:
        saved: of :meth:`Meaning.dump`; version 0.1 knew only ``domains``.
        now: of this run.
        allow: whether the user wants other domains.
        continued: whether the samples go on where they stood, mixed in another way; there may be
            new domains then, and some may be gone.
        consumed: samples that the checkpoint's run has trained on.

    Returns:
        What is different and allowed, in words.

    Raises:
        ConfigError: the domains are others, a prefix belongs to another one, or samples would be
            read again or never; not with ``allow``.
    """
    changes = [*_moved(saved, now)]
    told: list[str] = []
    could = False
    (told if continued else changes).extend(_other_names(saved, now))
    if now.order is not None and "order" in saved:
        before = Order.load(saved["order"])
        broken = [f"other training data: {one}" for one in breaks(before, now.order, consumed)]
        (told if continued else changes).extend(broken)
        whole = not any(breaks_of_epochs(before, now.order))
        could = bool(broken) and whole and ACCOUNT in saved
        told += remarks(before, now.order)
    if changes and not allow:
        raise ConfigError(
            f"the checkpoint was written with {'; '.join(changes)}. Counts would go on under other "
            "meanings, and samples be read again or never. Give what was given before, or "
            f"{_CONTINUE if could else ''}"
            "--allow-domain-change to carry on regardless (domains by name, as many samples "
            "skipped as were consumed), or --finetune to start counting afresh"
        )
    said = saved.get("settings", now.settings)
    settings = [
        f"{key} {said.get(key, 'default')} → {now.settings.get(key, 'default')}"
        for key in dict.fromkeys([*said, *now.settings])
        if said.get(key) != now.settings.get(key)
    ]
    if settings:
        told.append(f"another config: {_few(settings)}")
    return changes + told


def check_base(
    saved: Mapping[str, Any], now: Meaning, based: Collection[str], *, allow: bool
) -> list[str]:
    """Compare the fixed validation set, on which a rule's base was measured, with a checkpoint's.

    Args:
        saved, now, allow: as :func:`check_continuity` takes them.
        based: domains that have a base.

    Returns:
        What is different and allowed, in words.

    Raises:
        ConfigError: the set is another one, without ``allow``.
    """
    if now.order is None:  # a run that does not train follows nothing
        return []
    samples = [of.get("evaluate.samples") for of in (saved.get("settings", {}), now.settings)]
    found = [] if samples[0] == samples[1] else [f"evaluate.samples {samples[0]} → {samples[1]}"]
    if "order" in saved:
        prefixes = (
            {prefix for prefix, name in of.items() if name in based}
            for of in (saved.get("prefixes", {}), now.prefixes)
        )
        found += validation_changes(Order.load(saved["order"]), now.order, *prefixes)
    if not found:
        return []
    change = (
        f"the fixed validation set is not the checkpoint's: {'; '.join(found)}. The base that "
        "losses are compared with was measured on that one"
    )
    if not allow:
        raise ConfigError(
            f"{change}, and a rise above it would be one of the text. Give what was given before, "
            "or --finetune to measure a base afresh (counts start afresh, too), or "
            "--allow-domain-change to go on with the old base regardless"
        )
    return [change]


def _other_names(saved: Mapping[str, Any], now: Meaning) -> Iterator[str]:
    old, new = set(saved["domains"]), set(now.names)
    if old != new:
        yield (
            f"other domains: gone {sorted(old - new) or 'none'}, new {sorted(new - old) or 'none'}"
        )


def _moved(saved: Mapping[str, Any], now: Meaning) -> Iterator[str]:
    before = saved.get("prefixes", {})
    moved = [
        f"{prefix} from {before[prefix]} to {domain}"
        for prefix, domain in now.prefixes.items()
        if before.get(prefix, domain) != domain
    ]
    if moved:
        yield f"prefixes in other domains: {_few(moved)}"


def _few(changes: list[str]) -> str:
    more = len(changes) - MOST_TOLD
    return ", ".join(changes[:MOST_TOLD]) + (f" and {more} more" if more > 0 else "")
