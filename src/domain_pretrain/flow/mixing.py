"""Domain losses → shares of the stream, block by block; owns the state of the dynamic mix.

After every step, every rank takes the step's reduced losses into a strategy's memory. Where the
next step may come to a block that has no counts yet, they are decided from the multipliers as they
are: the domain's share of the blend times its multiplier. Ranks that read data hand the counts to
their data loader by the board; the others have the same state.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from domain_pretrain.data.mix.apportion import Counts, shares_of
from domain_pretrain.data.mix.blocks import Block, Blocks
from domain_pretrain.data.mix.decide import Array, Mask
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.mix.section import Dynamic
from domain_pretrain.data.prefixes import normalise
from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.board import Board
from domain_pretrain.flow.moment import Moment
from domain_pretrain.kernels.digest import WORDS
from domain_pretrain.rules.options import check_domains
from domain_pretrain.stats import Average, DomainStats
from domain_pretrain.strategies import Reweighter
from domain_pretrain.strategies.ema import reduced
from domain_pretrain.strategies.registry import Terms

# Multipliers are rounded to so many parts of one: layouts sum a token's loss in another order, and
# the last bits that differ by it must not decide who gets a sample.
ROUNDING = 1 << 20

# Told of every block, where somebody writes it down: (iteration, consumed samples, block, shares).
Tell = Callable[[int, int, Block, Mapping[str, float]], None]


@dataclass(frozen=True)
class Mixing:
    """What ``mix.dynamic`` asks for, checked for a run's domains.

    Attributes:
        plan: of the stream.
        names: the domains.
        owners: ``[n]``, the domain of every prefix.
        pinned: bool ``[D]``, domains that keep their share of the blend.
        rule: what makes the multipliers.
        average: ``channel_loss.average``.
        epochs: that a prefix may be read at most.
        decided: see :class:`.Blocks`.
    """

    plan: Plan
    names: tuple[str, ...]
    owners: Counts
    pinned: Mask
    rule: Reweighter
    average: Average
    epochs: int | None
    decided: Mapping[int, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def check(
        cls,
        section: Dynamic,
        plan: Plan,
        names: tuple[str, ...],
        domain_of: Mapping[str, str],
        *,
        pinned: Collection[str],
        average: Average,
        batch: int | None,
        offers: Collection[str] = (),
    ) -> Mixing:
        """Find every mistake at start-up.

        Args:
            section: of the config.
            plan, names, average: see the attributes.
            domain_of: data prefix, normalised → name of its domain.
            pinned: names of the pinned domains.
            batch: samples of a step, at most; None: not known.
            offers: what the run tells of :class:`.Course`.

        Raises:
            ConfigError: names the key.
        """
        assert plan.block is not None and plan.stages[0].weights is not None
        if batch is not None and batch > plan.block:
            raise ConfigError(
                f"mix.dynamic.block: {plan.block:,} samples are less than a step reads, which is "
                f"{batch:,}: the losses of a step cannot decide what is in it; make the block as "
                "large, or larger"
            )
        owners = np.array([names.index(domain_of[normalise(one)]) for one in plan.prefixes])
        base = np.bincount(owners, shares_of(plan.stages[0].weights), len(names))
        fixed = np.array([name in pinned for name in names])
        free = [name for name, share in zip(names, base, strict=True) if share]
        free = [name for name in free if name not in pinned]
        if len(free) < 2:
            raise ConfigError(
                f"mix.dynamic: of the training data, {len(free)} domain{'s' * (len(free) != 1)} "
                "may change its share: it takes two that are not pinned; leave it out, or name "
                "more domains"
            )
        rule = Reweighter.build(
            section,
            names,
            pinned=pinned,
            floor=_as_multipliers(section.floor, names, base),
            share=base,
            where="mix.dynamic",
            actuator="sampling",
            offers=offers,
            average=average,
        )
        return cls(plan, names, owners, fixed, rule, average, section.epochs)

    def agreed(self) -> str:
        """What every rank must have read alike."""
        return repr((self.rule.agreed(), self.epochs))

    def start(
        self, limits: Sequence[int], board: Board, device: torch.device, tell: Tell | None = None
    ) -> Mixer:
        """Before the first step.

        Args:
            limits: samples that so many epochs of every prefix have.
            board: that the data loader's workers read.
            device: where the losses live.
            tell: of every block that is decided.
        """
        return Mixer(self, np.array(limits, np.int64), board, device, tell)


class Mixer:
    """The dynamic mix of a run; on every rank. :meth:`begin` comes before anything is read."""

    def __init__(
        self,
        mixing: Mixing,
        limits: Counts,
        board: Board,
        device: torch.device,
        tell: Tell | None,
    ) -> None:
        self._mixing, self._rule, self._board, self._tell = mixing, mixing.rule, board, tell
        self._memory = mixing.rule.start()
        self.blocks = Blocks(
            mixing.plan,
            mixing.names,
            mixing.owners,
            mixing.pinned,
            limits,
            mixing.epochs,
            mixing.decided,
        )
        self._consumed, self._signed = 0, -1
        # fp32: what every rank proves to have decided alike.
        self.in_force = torch.zeros(WORDS, device=device)

    @property
    def shares(self) -> dict[str, float]:
        """Part of each domain in the block that was read last, by name."""
        return self.blocks.shares(self._consumed)

    def begin(self, iteration: int, consumed: int) -> None:
        """Decide what the first step may read; after the state has been loaded, if there is any.

        Raises:
            ConfigError: the epochs that are allowed are not enough.
        """
        self.blocks.check_room()
        self._advance(iteration, consumed)

    def commit(self, stats: DomainStats | None, moment: Moment) -> None:
        """After a step, on every rank.

        Args:
            stats: its exact global sums; None where it did not update the model: nothing is learnt.
            moment: where training stands.
        """
        if stats is not None:
            sums = reduced(stats, self._mixing.average)
            course = replace(moment.course, most=self.blocks.most)
            self._memory = self._rule.advance(
                self._memory, *sums, batch_tokens=moment.batch_tokens, course=course
            )
        self._advance(moment.iteration, moment.consumed_samples)

    @property
    def terms(self) -> Terms:
        """What the rule says of itself, and what it keeps as of now."""
        return self._rule.strategy.terms, self._memory.state

    def _advance(self, iteration: int, consumed: int) -> None:
        self._consumed = consumed
        shares = self._shares_now()
        new = self.blocks.advance(consumed, shares)
        for block in self.blocks.readable(consumed):
            self._board.publish(block.number, block.start, block.counts)
        if self.blocks.next != self._signed:
            self._sign()
        if self._tell is not None:
            told = dict(zip(self._mixing.names, shares.tolist(), strict=True))
            for block in new:
                self._tell(iteration, consumed, block, told)

    def _shares_now(self) -> Array:
        """Of the domains: the blend's, times the multipliers as they are."""
        pinned, base = self._mixing.pinned, self.blocks.base
        rounded = np.rint(self._memory.multipliers * ROUNDING) / ROUNDING
        shares: Array = np.where(pinned, base, base * rounded)
        shares[~pinned] *= math.fsum(base[~pinned]) / math.fsum(shares[~pinned])
        return shares

    def _sign(self) -> None:
        """Put a digest of all decisions in force: words that fp32 holds exactly."""
        self._signed = self.blocks.next
        digest = hashlib.sha256(json.dumps(self.blocks.account()).encode()).digest()
        words = [int.from_bytes(digest[3 * k : 3 * k + 3], "big") for k in range(WORDS)]
        self.in_force.copy_(torch.tensor(words, dtype=torch.float32))

    def state_dict(self) -> dict[str, Any]:
        """Python primitives; the same on every rank."""
        return {"rule": self._rule.dump(self._memory), **self.blocks.dump()}

    def load_state_dict(self, state: Mapping[str, Any], *, continued: bool = False) -> None:
        """The inverse.

        Args:
            state: of a checkpoint.
            continued: whether another stream goes on from there: its blocks are its own.
        """
        self._memory = self._rule.load(state["rule"])
        if not continued:
            self.blocks.load(state)


def _as_multipliers(
    floor: float | Mapping[str, float], names: tuple[str, ...], base: Array
) -> dict[str, float]:
    """Smallest shares → smallest multipliers, by domain.

    Raises:
        ConfigError: one that was given for a domain is above its share of the blend.
    """
    shares = {name: float(share) for name, share in zip(names, base, strict=True) if share}
    if not isinstance(floor, Mapping):
        return {name: min(floor / share, 1.0) for name, share in shares.items()}
    check_domains("mix.dynamic.floor", floor, names, complete=False)
    for name, least in floor.items():
        if least > shares.get(name, 0.0):
            raise ConfigError(
                f"mix.dynamic.floor: {name!r} has {shares.get(name, 0.0):.4g} of the blend, and "
                f"cannot be held at {least:.4g}: its share moves around that of the blend; give "
                "it more weight in the data, or a lower floor"
            )
    return {name: min(least / shares[name], 1.0) for name, least in floor.items() if least}
