"""The blocks of a stream whose shares are decided on the way: one after the other, each once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from domain_pretrain.data.mix.apportion import Counts, ordered, shares_of
from domain_pretrain.data.mix.decide import UNIT, Array, Mask, by_prefix, due, handed_out
from domain_pretrain.data.mix.omit import same_places
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.errors import ConfigError

_ENDLESS = 1 << 62


@dataclass(frozen=True)
class Block:
    """A decided part of the stream.

    Attributes:
        number: it begins at position ``number × plan.block``.
        start: int64 ``[n]``, samples of every prefix before it; where another plan has read the
            first part of the block, so many that all else of it goes on from there.
        counts: int64 ``[n]``, of every prefix in it.
    """

    number: int
    start: Counts
    counts: Counts


class Blocks:
    """What has been decided so far; the same on every rank.

    A step may read as many samples as a block has: whenever it begins, all blocks are decided that
    they may lie in. So no reader ever waits for what its own batch has to decide.

    Args:
        plan: of the stream; its stage has the shares of the blend.
        names: the domains.
        owners: of every prefix, the number of its domain.
        pinned: bool ``[D]``, domains that keep their share of the blend.
        limits: samples that so many epochs of every prefix have.
        epochs: that a prefix may be read at most; None: any number.
        decided: blocks that are what they were in a part of the run that was given up, samples of
            every prefix by number; of another size or other prefixes, they are not.
    """

    def __init__(
        self,
        plan: Plan,
        names: tuple[str, ...],
        owners: Counts,
        pinned: Mask,
        limits: Counts,
        epochs: int | None,
        decided: Mapping[int, Sequence[int]] = MappingProxyType({}),
    ) -> None:
        assert plan.block is not None and plan.stages[0].weights is not None
        self.plan, self.names, self.size = plan, names, plan.block
        base = shares_of(plan.stages[0].weights)
        self.base: Array = np.bincount(owners, base, len(names))  # [D]
        self._owners, self._pinned = owners, pinned
        self._parts = np.divide(base, self.base[owners], out=np.zeros_like(base), where=base > 0)
        most = np.full(len(base), _ENDLESS) if epochs is None else limits
        self._limits: Counts = np.where(base > 0, most, 0)
        self._epochs = epochs
        self._decided = {
            number: np.array(counts, np.int64)
            for number, counts in decided.items()
            if len(counts) == len(base) and sum(counts) == self.size
        }
        self._begin()

    def _begin(self) -> None:
        plan = self.plan
        self.next = max(plan.begin - 1, 0) // self.size
        self._behind = plan.begin - self.next * self.size  # places of it that another plan has read
        self.taken: Counts = np.array(plan.taken or [0] * len(self._owners), np.int64)
        self._owed: Counts = np.zeros(len(self._owners), np.int64)
        self.live: dict[int, Block] = {}

    @property
    def _room(self) -> Counts:
        """``[n]``, samples that every prefix may still give; a resumed run may allow fewer."""
        return np.maximum(self._limits - self.taken, 0)

    @property
    def _end(self) -> int:
        """The first block that the run does not come to."""
        return -(-self.plan.passed(self.plan.samples) // self.size)

    def window(self, consumed: int) -> tuple[int, int]:
        """First and last block that matter to a run after ``consumed`` samples: from that of the
        sample before to that of the last one that its next step may read. Of a run that begins with
        a cut, what is cut is before."""
        samples = self.plan.samples
        before, after = (
            self.plan.passed(min(consumed, samples)),
            min(consumed + self.size, samples - 1),
        )
        return max(before - 1, 0) // self.size, self.plan.position(after) // self.size

    def advance(self, consumed: int, shares: Array) -> list[Block]:
        """Decide what the next step may read, and forget what is read.

        Args:
            consumed: samples that the run has trained on.
            shares: ``[D]`` of the domains, Σ = 1, for what is decided now.

        Returns:
            The new blocks, of which some may lie in a cut.
        """
        first, last = self.window(consumed)
        if not self.live.keys() >= {*range(first, min(self.next, last + 1))}:
            self._begin()  # a resumed run that was allowed to go back to before other cuts
        new = []
        while self.next <= last:
            new.append(self._decide(shares))
        self.live |= {block.number: block for block in new}
        self.live = {number: block for number, block in self.live.items() if number >= first}
        return [block for block in new if block.number >= first]

    @property
    def _most(self) -> Array:
        """``[n]``, largest share of what is not decided yet that each prefix can have."""
        if self._epochs is None:
            return np.full(len(self._limits), np.inf)
        most: Array = self._room / (max(self._end - self.next, 1) * self.size)
        return most

    @property
    def most(self) -> dict[str, float]:
        """The same of the domains, by name; empty where the epochs are not limited."""
        if self._epochs is None:
            return {}
        found = np.bincount(self._owners, self._most, len(self.names))
        return dict(zip(self.names, found.tolist(), strict=True))

    def _decide(self, shares: Array) -> Block:
        counts = self._decided.get(self.next)
        if counts is None:
            prefixes = by_prefix(shares, self._parts, self._owners, self._pinned, self._most)
            owed = self._owed + due(prefixes, self.size)
            counts = handed_out(owed, self.size, self._room)
            self._owed = owed - counts * UNIT
        behind = np.bincount(ordered(counts)[0][: self._behind], minlength=len(counts))
        block = Block(self.next, self.taken - behind, counts)
        self.taken = block.start + counts
        self._behind = 0
        self.next += 1
        return block

    def readable(self, consumed: int) -> list[Block]:
        """The blocks in the window of which something is read."""
        first, last = self.window(consumed)
        return [
            self.live[number]
            for number in range(first, last + 1)
            if self.plan.reads(number * self.size, (number + 1) * self.size)
        ]

    @staticmethod
    def most_readable(plan: Plan) -> int:
        """An upper bound on how many those are: every stretch between cuts begins and ends one."""
        return 2 * (len(plan.cuts) + 1) + 2

    def shares(self, consumed: int) -> dict[str, float]:
        """Of the domains in the block of the sample before, by name."""
        counts = self.live[self.window(consumed)[0]].counts
        shares = np.bincount(self._owners, counts, len(self.names)) / self.size
        return {name: float(share) for name, share in zip(self.names, shares, strict=True)}

    def check_room(self) -> None:
        """Before the run: the epochs that are allowed must be enough for what is still to come.

        Raises:
            ConfigError: they are not, for a pinned domain or all the others.
        """
        if self._epochs is None:
            return
        rest = max(self._end - self.next, 0) * self.size
        room = np.bincount(self._owners, self._room, len(self.names))
        _check("the training data have", room.sum(), rest, self._epochs)
        wanted = self.base * rest - len(self.taken)  # every prefix is near its share, not on it
        for domain in np.flatnonzero(self._pinned):
            who = f"the pinned domain {self.names[domain]!r} has"
            _check(who, room[domain], wanted[domain], self._epochs)
        free = ~self._pinned
        who = "the domains that are not pinned have"
        _check(who, room[free].sum(), wanted[free].sum(), self._epochs)

    def account(self) -> list[Any]:
        """What all decisions so far have come to, JSON values; without paths, which may differ by
        node, and without what is forgotten when."""
        return [self.next, self.taken.tolist(), self._owed.tolist()]

    def dump(self) -> dict[str, Any]:
        """For a checkpoint, JSON values."""
        return {
            "prefixes": [normalise(prefix) for prefix in self.plan.prefixes],
            "size": self.size,
            "next": self.next,
            "taken": self.taken.tolist(),
            "owed": self._owed.tolist(),
            "blocks": [
                [one.number, one.start.tolist(), one.counts.tolist()] for one in self.live.values()
            ],
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """The inverse. By prefix; by position, where files were moved.

        With more or fewer prefixes, or blocks of another size (whether that is allowed is the
        caller's affair), nothing is taken over: all blocks are laid out anew, as if the present
        shares had always held.
        """
        places = same_places(saved["prefixes"], self.plan.prefixes)
        if places is None or saved["size"] != self.size:
            return

        def ours(values: list[int]) -> Counts:
            return np.array([values[place] for place in places], np.int64)

        self.next, self._behind = int(saved["next"]), 0
        self.taken, self._owed = ours(saved["taken"]), ours(saved["owed"])
        self.live = {
            number: Block(number, ours(start), ours(counts))
            for number, start, counts in saved["blocks"]
        }


def given_before(saved: Mapping[str, Any], plan: Plan, position: int) -> Counts | None:
    """By a checkpoint, samples of every prefix before a position that its run has just come to.

    Args:
        saved: of :meth:`Blocks.dump`.
        plan: of the run that goes on.
        position: of the stream.

    Returns:
        int64 ``[n]``; None where it does not tell, and at the very beginning.
    """
    places = same_places(saved["prefixes"], plan.prefixes)
    number, last = divmod(position - 1, saved["size"])
    for block, start, counts in saved["blocks"]:
        if block == number and places is not None:
            own = np.array(counts, np.int64)
            read = np.bincount(ordered(own)[0][: last + 1], minlength=len(own))
            found: Counts = (np.array(start, np.int64) + read)[list(places)]
            return found
    return None


def _check(who: str, found: float, wanted: float, epochs: int) -> None:
    if wanted > found:
        raise ConfigError(
            f"mix.dynamic.epochs: {who} {found:,.0f} samples left in {epochs} "
            f"epoch{'s' * (epochs != 1)}, and the rest of the run, in whole blocks, takes "
            f"{wanted:,.0f} of them: allow more epochs, find more data, or train on less"
        )
