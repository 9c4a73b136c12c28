"""The whole way of one optimizer step: exact sums → EMA → rule → multipliers of the next step."""

from __future__ import annotations

import hashlib
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
from domain_pretrain.strategies.observation import Array, Mask, Observation
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
        actuator: what the multipliers move.
    """

    names: tuple[str, ...]
    strategy: Strategy
    options: StepRule
    bounds: Bounds
    horizon: float | None
    share: Array | None = None
    actuator: Actuator = "losses"

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
            actuator=actuator,
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
            active=self._active(ema),
            loss=ema.loss,
            present=present,
            step_loss=np.divide(
                loss_sum, tokens, out=np.full_like(ema.loss, np.nan), where=present
            ),
            tokens=ema.consumed,
            weighed_tokens=tokens if self.actuator == "sampling" else tokens * memory.multipliers,
            share=share,
            course=course or Course(),
        )
        weights, state = self.strategy(seen, memory.state)
        weights = mixed(weights, seen.active, self.options.uniform_part)
        return self._remembered(memory.step + 1, ema, state, weights)

    def _active(self, ema: Ema) -> Mask:
        """``[D]``, the domains that are weighed."""
        return ema.seen & (self.bounds.low < self.bounds.high)

    def _remembered(self, step: int, ema: Ema, state: State, weights: Array) -> Memory:
        """With the multipliers that follow from the rest."""
        made = np.ones_like(weights)
        if step >= self.options.warmup_steps:
            share = ema.share if self.share is None else self.share
            active, objective = self._active(ema), self.options.objective
            made = multipliers(weights, active, share, self.bounds, objective)
        return Memory(step, ema, state, weights, made)

    def agreed(self) -> str:
        """What every rank must have read alike; without paths, which may differ by node."""
        return f"{self._settings()} {self.horizon}"

    def _settings(self) -> str:
        """A digest of what multipliers follow from besides the losses, in any order of domains."""
        common = {key: getattr(self.options, key) for key in type(self.options).model_fields}
        strategy = self.strategy.options.model_dump()  # with the losses that a file was read for
        share = np.zeros(len(self.names)) if self.share is None else self.share
        columns = (self.bounds.low.tolist(), self.bounds.high.tolist(), share.tolist())
        by_name = sorted(zip(self.names, *columns, strict=True))
        settings = repr((self.strategy.name, strategy, common, by_name))
        return hashlib.sha256(settings.encode(errors="surrogatepass")).hexdigest()

    def dump(self, memory: Memory) -> dict[str, Any]:
        """For a checkpoint: Python primitives, per-domain values by name."""
        arrays = {"weights": memory.weights, "multipliers": memory.multipliers}
        return {
            "strategy": self.strategy.name,
            "settings": self._settings(),
            "step": memory.step,
            "ema": memory.ema.dump(self.names),
            "state": codec.dump(memory.state, self.names),
            **codec.dump(arrays, self.names),
        }

    def load(self, saved: Mapping[str, Any]) -> Memory:
        """The inverse, by name; with the same settings the multipliers are exactly as saved.

        With others they are made anew, for these bounds and this blend. With another list of
        domains (whether that is allowed is the caller's affair), another strategy, or a domain that
        is weighed from now on, all are 1 until the next step has been folded in. The state of
        another strategy is not taken; the EMA is.
        """
        fresh = self.start()
        ema = Ema.load(saved["ema"], self.names)
        same = saved["strategy"] == self.strategy.name
        state = codec.load(saved["state"], self.names) if same else {}
        if set(saved["multipliers"]) != set(self.names):
            return Memory(saved["step"], ema, state, fresh.weights, fresh.multipliers)
        arrays = codec.load({key: saved[key] for key in ("weights", "multipliers")}, self.names)
        weights, step = arrays["weights"], saved["step"]
        if saved.get("settings", settings := self._settings()) == settings:
            return Memory(step, ema, state, weights, arrays["multipliers"])
        if not same or (weights[self._active(ema)] == 0).any():
            weights = fresh.weights
        return self._remembered(step, ema, state, weights)


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
