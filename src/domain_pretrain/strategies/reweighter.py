"""The whole way of one optimizer step: exact sums → EMA → rule → multipliers of the next step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from domain_pretrain.errors import ConfigError
from domain_pretrain.rules import state as codec
from domain_pretrain.rules.state import State
from domain_pretrain.stats import Average
from domain_pretrain.strategies.course import Course
from domain_pretrain.strategies.ema import Ema, default_horizon, finite
from domain_pretrain.strategies.multipliers import Bounds, mixed, multipliers
from domain_pretrain.strategies.observation import Array, Observation
from domain_pretrain.strategies.reference import check_average
from domain_pretrain.strategies.registry import NEEDS, Actuator, Strategy, build
from domain_pretrain.strategies.section import StepRule


@dataclass(frozen=True)
class Memory:
    """All that is carried from step to step; identical on all ranks.

    Attributes:
        step: optimizer steps that were folded in.
        ema: losses and shares.
        state: the rule's own.
        weights: ``[D]``, the rule's with the uniform part; 0 for domains that are not weighed.
        multipliers: ``[D]``, for the *next* step.
    """

    step: int
    ema: Ema
    state: State
    weights: Array
    multipliers: Array


@dataclass(frozen=True)
class Reweighter:
    """A strategy set up for a list of domains. Pure: memory in, memory out.

    Attributes:
        names: the domains.
        strategy: the rule.
        options: the config's section.
        bounds: of the multipliers.
        horizon: of the EMA, in tokens of a domain; None: it follows the size of each step.
        share: ``[D]``, of the tokens, where the multipliers are made for fixed ones; None: for
            those that are measured.
    """

    names: tuple[str, ...]
    strategy: Strategy
    options: StepRule
    bounds: Bounds
    horizon: float | None
    share: Array | None = None

    @classmethod
    def build(
        cls,
        options: StepRule,
        names: tuple[str, ...],
        *,
        horizon: float | None = None,
        pinned: Collection[str] = (),
        floor: Mapping[str, float] | None = None,
        share: Array | None = None,
        where: str = "reweight",
        actuator: Actuator = "losses",
        offers: Collection[str] = (),
        average: Average = "token",
    ) -> Reweighter:
        """Check everything at start-up.

        Args:
            options: the config's section; keys it does not know are the strategy's.
            names: the domains.
            horizon: tokens, where the options leave it open; None: that of each step's batch.
            pinned: domains left as they are: multiplier 1, and no say in the others' weights.
            floor: smallest multipliers, by domain.
            share: see the attributes.
            where: path of the options in the config, for messages.
            actuator: what the multipliers move.
            offers: what this run tells of :class:`.Course`.
            average: of its losses.

        Raises:
            ConfigError: names the key.
        """
        known = tuple(type(options).model_fields)
        strategy = build(
            options.strategy, options.model_extra or {}, names, where=where, also=known
        )
        _check_fit(strategy, where, actuator, offers, pinned)
        check_average(strategy.options, average, where)
        options = _settled(options, strategy, where)
        return cls(
            names=names,
            strategy=strategy,
            options=options,
            bounds=Bounds.build(names, options.clip, pinned, floor),
            horizon=options.ema_tokens or horizon,
            share=share,
        )

    def start(self) -> Memory:
        """Before the first step: nothing known, multipliers one."""
        domains = len(self.names)
        return Memory(0, Ema.empty(domains), {}, np.zeros(domains), np.ones(domains))

    def advance(
        self,
        memory: Memory,
        loss_sum: Array,
        tokens: Array,
        *,
        batch_tokens: float,
        course: Course | None = None,
    ) -> Memory:
        """Fold in a step that was committed (never a skipped or repeated one).

        Args:
            memory: before it.
            loss_sum: ``[D]`` nats, Σ mask·loss over the global batch; NaN where not finite.
            tokens: ``[D]``, Σ mask; 0 where absent.
            batch_tokens: tokens that the step had room for. Batch sizes may follow a schedule, so
                the default horizon is taken from the step itself.
            course: how far the run is, where that is known.
        """
        present = finite(loss_sum, tokens)
        horizon = self.horizon or default_horizon(batch_tokens, len(self.names))
        ema = memory.ema.fold(loss_sum, tokens, horizon)
        share = ema.share if self.share is None else self.share
        seen = Observation(
            names=self.names,
            step=memory.step + 1 - self.options.warmup_steps,
            active=ema.seen & (self.bounds.low < self.bounds.high),
            loss=ema.loss,
            present=present,
            step_loss=np.divide(
                loss_sum, tokens, out=np.full_like(ema.loss, np.nan), where=present
            ),
            tokens=ema.consumed,
            share=share,
            course=course or Course(),
        )
        weights, state = self.strategy(seen, memory.state)
        weights = mixed(weights, seen.active, self.options.uniform_part)
        scaled = multipliers(weights, seen.active, share, self.bounds, self.options.objective)
        in_force = np.ones_like(scaled) if seen.warming else scaled
        return Memory(memory.step + 1, ema, state, weights, in_force)

    def agreed(self) -> str:
        """What every rank must have read alike; without paths, which may differ by node."""
        common = {key: getattr(self.options, key) for key in type(self.options).model_fields}
        strategy = self.strategy.options.model_dump()  # with the losses that a file was read for
        bounds = (self.bounds.low.tolist(), self.bounds.high.tolist())
        return repr((self.strategy.name, strategy, common, bounds, self.horizon))

    def dump(self, memory: Memory) -> dict[str, Any]:
        """For a checkpoint: Python primitives, per-domain values by name."""
        arrays = {"weights": memory.weights, "multipliers": memory.multipliers}
        return {
            "strategy": self.strategy.name,
            "step": memory.step,
            "ema": memory.ema.dump(self.names),
            "state": codec.dump(memory.state, self.names),
            **codec.dump(arrays, self.names),
        }

    def load(self, saved: Mapping[str, Any]) -> Memory:
        """The inverse, by name; the multipliers are exactly those that were saved.

        With another list of domains (whether that is allowed is the caller's affair) they would not
        keep Σ share·m = 1: all are 1 until the next step has been folded in. The state of another
        strategy is not taken; the EMA is.
        """
        fresh = self.start()
        ema = Ema.load(saved["ema"], self.names)
        same = saved["strategy"] == self.strategy.name
        state = codec.load(saved["state"], self.names) if same else {}
        if set(saved["multipliers"]) != set(self.names):
            return Memory(saved["step"], ema, state, fresh.weights, fresh.multipliers)
        arrays = codec.load({key: saved[key] for key in ("weights", "multipliers")}, self.names)
        return Memory(saved["step"], ema, state, arrays["weights"], arrays["multipliers"])


def _check_fit(
    strategy: Strategy,
    where: str,
    actuator: Actuator,
    offers: Collection[str],
    pinned: Collection[str],
) -> None:
    """Refuse a rule that would lack something, or move what it is not for."""
    terms = strategy.terms
    if actuator not in terms.steers:
        raise ConfigError(
            f"{where}.strategy: {strategy.name} moves {' and '.join(terms.steers)}, and here it "
            f"would move {actuator}"
        )
    if pinned and not terms.pins:
        raise ConfigError(
            f"domains.{next(iter(pinned))}.pinned: {strategy.name} decides the share of every "
            f"domain ({where}.strategy), and a pinned one keeps its own: take pinned out"
        )
    for need in sorted(terms.wants().difference(offers)):
        what, how = NEEDS[need]
        raise ConfigError(f"{where}.strategy: {strategy.name} needs {what}: {how}")


def _settled(options: StepRule, strategy: Strategy, where: str) -> StepRule:
    """The section with what its rule decides itself."""
    settles = strategy.terms.settles
    idle = sorted(options.model_fields_set & settles.keys())
    if idle:
        raise ConfigError(
            f"{where}.{idle[0]} has no effect with strategy {strategy.name}, whose weights are "
            "shares as they are to be: take it out"
        )
    return options.model_copy(update=dict(settles))
