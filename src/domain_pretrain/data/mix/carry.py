"""A run that goes on with its data mixed in another way: each prefix where it stood.

A prefix gives its samples in an order of its own, whatever the others do. So all that has to be
known of a run before is how many each prefix has given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import places
from domain_pretrain.errors import ConfigError

MOST_TOLD, MOST_GO_ON = 3, 8


@dataclass(frozen=True)
class Consumed:
    """What a run has read of a prefix; with the order of an epoch, that tells every document.

    Attributes:
        samples: so many, in order; cut ones count.
        epoch: samples of one epoch; None: Megatron has shuffled several epochs together, or blends
            the prefix twice.
        documents, tokens: of its files, as far as they can be seen from here.
    """

    samples: int
    epoch: int | None
    documents: int | None = None
    tokens: int | None = None


Account = Mapping[str, Consumed]  # by normalised prefix


def dump(account: Account) -> dict[str, Any]:
    """For a checkpoint, JSON values."""
    return {prefix: asdict(one) for prefix, one in account.items()}


def load(state: Mapping[str, Any]) -> dict[str, Consumed]:
    """The inverse."""
    return {prefix: Consumed(**one) for prefix, one in state.items()}


def left_behind(account: Account, now: Account) -> dict[str, Consumed]:
    """What was read of prefixes that the run does not have any more; they may come back."""
    known = {*now, *_places(account, now).values()}
    return {prefix: one for prefix, one in account.items() if prefix not in known and one.samples}


def go_on(plan: Plan, account: Account, now: Account, consumed: int) -> Plan:
    """The same plan, from a run's present position on.

    Args:
        plan: of the whole run, as it is asked for now.
        account: of the run so far.
        now: its prefixes as they are now, in the order of the plan; nothing read.
        consumed: samples that the run has trained on.

    Raises:
        ConfigError: of a prefix, those that were read cannot be told from those that were not.
    """
    before = {prefix: account[place] for prefix, place in _places(account, now).items()}
    problems = list(_problems(before, now))
    if problems:
        more = len(problems) - MOST_TOLD
        raise ConfigError(
            "mix.on_change: continue cannot go on where the run stood:\n  "
            + "\n  ".join(problems[:MOST_TOLD])
            + (f"\n  and {more} more" if more > 0 else "")
        )
    taken = tuple(before[prefix].samples if prefix in before else 0 for prefix in now)
    return replace(plan, begin=plan.passed(consumed), taken=taken)


def tell(plan: Plan, lengths: Sequence[int]) -> str:
    """Where each prefix goes on, in words; of many, the first."""
    told = list(_told(plan, lengths))
    more = len(told) - MOST_GO_ON
    return "; ".join(told[:MOST_GO_ON]) + (f"; and {more} more" if more > 0 else "")


def _told(plan: Plan, lengths: Sequence[int]) -> Iterator[str]:
    for prefix, taken, length in zip(plan.prefixes, plan.taken, lengths, strict=True):
        where = f"after {taken % length:,} of {length:,} samples in epoch {taken // length + 1:,}"
        yield f"{prefix} goes on {where}" if taken else f"{prefix} begins"


def _places(account: Account, now: Account) -> dict[str, str]:
    """Where the account has each prefix."""
    return places(_sizes(account), _sizes(now))


def _sizes(account: Account) -> dict[str, tuple[int | None, ...] | None]:
    return {name: None if one.tokens is None else _size(one) for name, one in account.items()}


def _size(one: Consumed) -> tuple[int | None, int | None, int | None]:
    return one.epoch, one.documents, one.tokens


def _problems(before: Account, now: Account) -> Iterator[str]:
    for prefix, old in before.items():
        new = now[prefix]
        if not old.samples:
            continue
        if None not in (old.tokens, new.tokens) and _size(old)[1:] != _size(new)[1:]:
            yield (
                f"{prefix!r} has other content: {old.tokens:,} → {new.tokens:,} tokens in "
                f"{old.documents:,} → {new.documents:,} documents, and is shuffled anew with it; "
                "put the files back as they were, and give documents that have been added as a "
                "prefix of their own"
            )
        elif old.epoch is None:
            yield (
                f"{prefix!r}: Megatron's own blend has shuffled several epochs of it together (or "
                "reads it under two weights), so that what is left of an epoch is not in a row; "
                "train on without mix, or take the prefix off the training data"
            )
        elif old.epoch != new.epoch:
            yield (
                f"{prefix!r} has {new.epoch:,} samples in the training split, and had "
                f"{old.epoch:,}: its content is another; put the files back as they were"
            )
