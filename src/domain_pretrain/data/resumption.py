"""What a resumed run makes of the stream of the run before: the same, or another from here on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from domain_pretrain.data.mix import carry
from domain_pretrain.data.mix.carry import Consumed
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.order import Order, breaks, breaks_of_epochs
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError

ACCOUNT = "prefixes_read"  # in the state of a checkpoint; see :func:`.carry.dump`


@dataclass(frozen=True)
class Resumed:
    """How a run goes on.

    Attributes:
        plan: of its stream, with where it goes on from another.
        continued: whether it does so from here on.
        left_behind: what was read of prefixes that it does not have any more.
    """

    plan: Plan
    continued: bool = False
    left_behind: Mapping[str, Consumed] = field(default_factory=dict)


def resumed(
    plan: Plan,
    order: Order,
    now: carry.Account,
    state: Mapping[str, Any] | None,
    consumed: int,
    *,
    go_on: bool,
) -> Resumed:
    """Compare a run with the one before, and settle where its stream goes on.

    Args:
        plan: that the config asks for.
        order: that it makes.
        now: of :func:`account`; nothing read.
        state: of the plugin, in the checkpoint; None: it holds none.
        consumed: samples that the run before has trained on.
        go_on: whether another stream may go on where that of the run before stood. If not, a
            change is left to :func:`.check_continuity`.

    Raises:
        ConfigError: that is not known, or would read samples again or never.
    """
    if state is None or "order" not in state:
        if go_on and consumed:
            raise ConfigError(
                "mix.on_change: continue needs to know what the run has read, and the checkpoint "
                "does not say (it was written without channel loss, or --no-load-optim was given): "
                "take it out of the config, if the data are what they were"
            )
        return Resumed(plan)
    before = Order.load(state["order"])
    read = carry.load(state.get(ACCOUNT, {}))
    if not any(breaks(before, order, consumed)):
        old = before.mix or {}
        plan = replace(plan, begin=old.get("begin", 0), taken=tuple(old.get("taken", ())))
        return Resumed(plan, left_behind=carry.left_behind(read, now))
    if not go_on:
        return Resumed(plan)
    others = list(breaks_of_epochs(before, order))
    if others:
        raise ConfigError(
            f"mix.on_change: continue goes on with each prefix where it stood, and with "
            f"{'; '.join(others)} every prefix is another row of samples: give what was given "
            "before, or --allow-domain-change to carry on regardless"
        )
    if ACCOUNT not in state:
        raise ConfigError(
            "mix.on_change: continue: the checkpoint does not say how many samples of each prefix "
            "the run has read (it was written by a version before 0.2, or the run read them in no "
            "order that could be told): resume with the data and the config that it had, and "
            "change them at a later checkpoint"
        )
    plan = carry.go_on(plan, read, now, consumed)
    return Resumed(plan, continued=True, left_behind=carry.left_behind(read, now))


def account(
    prefixes: Sequence[str],
    samples: Sequence[int],
    epochs: Sequence[int | None],
    reading: Reading,
) -> dict[str, Consumed]:
    """What was read of each prefix.

    Args:
        prefixes: of the training data, as its blend spells them; of one that is named twice, it is
            not told what is left of an epoch.
        samples, epochs: see :class:`.Consumed`.
        reading: of the run.
    """
    found: dict[str, Consumed] = {}
    for prefix, count, epoch in zip(prefixes, samples, epochs, strict=True):
        key, index = normalise(prefix), reading.indices.get(prefix)
        size = (None, None) if index is None else (index.sequences, index.tokens)
        if key in found:
            count, epoch = count + found[key].samples, None
        found[key] = Consumed(int(count), epoch, *size)
    return found
