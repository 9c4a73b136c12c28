"""Domain losses → multipliers on per-token losses; owns the reweighting state of a checkpoint.

Three ways, one interface: multipliers for the samples of a microbatch, between its forward and its
backward pass. ``Lagged`` knows them before the step begins; ``WithinMicrobatch`` and
``WithinSamples`` work them out of this very microbatch, at the price of a collective each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.microbatch import Microbatch, Weights
from domain_pretrain.flow.within import Curve, WithinMicrobatch, WithinSamples
from domain_pretrain.kernels.domain_reduce import Backend, select
from domain_pretrain.stats import SCALE, Average, Column, DomainStats
from domain_pretrain.strategies import Reweighter
from domain_pretrain.strategies.diagnostics import diagnose
from domain_pretrain.strategies.ema import default_horizon, reduced
from domain_pretrain.strategies.multipliers import Bounds
from domain_pretrain.strategies.section import Reweight
from domain_pretrain.strategies.shapes import SHAPES


class Steering(Protocol):
    """What a step asks of a way of reweighting. Ranks: the whole last pipeline stage."""

    @property
    def step_multipliers(self) -> torch.Tensor | None:
        """fp32 ``[D]``, in force for the whole step; None where each microbatch has its own."""

    @property
    def in_force(self) -> torch.Tensor | None:
        """fp32, the multipliers that were used last, the same on all ranks; None where unused."""

    def weights(self, microbatch: Microbatch) -> Weights:
        """What multiplies the samples' per-token losses. No host sync."""

    def commit(self, read: Callable[[], DomainStats]) -> None:
        """After a step that updated the weights, on every rank.

        Args:
            read: gives its exact global sums; waits for the device.
        """

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        """What the weights do, in a few numbers, over the tokens of a window."""

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, by domain name; the same on every rank."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""


class Lagged:
    """Scope ``global_batch``: what step t measured is in force in step t + 1.

    No collective on the critical path. The rules run on the host, in float64, on the reduced sums
    that every rank has; reading them waits for the step's one all-reduce, right after the host
    itself has waited for the gradient norm.
    """

    def __init__(self, reweighter: Reweighter, average: Average, device: torch.device) -> None:
        self.reweighter = reweighter
        self.memory = reweighter.start()
        self._average: Average = average
        # Written in place, so that a captured CUDA graph reads what is in force.
        self._multipliers = torch.ones(len(reweighter.names), device=device)

    @property
    def step_multipliers(self) -> torch.Tensor:
        return self._multipliers

    @property
    def in_force(self) -> torch.Tensor:
        return self._multipliers

    def weights(self, microbatch: Microbatch) -> Weights:
        return Weights(microbatch.rows.domains, self._multipliers)

    def commit(self, read: Callable[[], DomainStats]) -> None:
        self.memory = self.reweighter.advance(self.memory, *reduced(read(), self._average))
        self._put()

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        # Of the present weights, on the window's tokens.
        tokens = stats.sums[:-1, Column.TOKENS] / SCALE[Column.TOKENS]
        memory = self.memory
        bounds = self.reweighter.bounds
        return asdict(diagnose(memory.weights, memory.multipliers, tokens, bounds))

    def state_dict(self) -> dict[str, Any]:
        return self.reweighter.dump(self.memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "ema" in state:
            self.memory = self.reweighter.load(state)
        else:  # of a run that weighed within the microbatch: estimates begin here
            self.memory = replace(self.reweighter.start(), step=int(state["step"]))
        self._put()

    def _put(self) -> None:
        self._multipliers.copy_(torch.from_numpy(self.memory.multipliers.astype(np.float32)))


@dataclass(frozen=True)
class Reweighting:
    """What the ``reweight`` section asks for, checked for a run's domains; no device is needed.

    Attributes:
        section: of the config.
        names: the domains.
        average: ``channel_loss.average``.
        pinned: domains whose multiplier is always 1.
        rule: what weighs whole steps, or what weighs within the forward pass.
    """

    section: Reweight
    names: tuple[str, ...]
    average: Average
    pinned: frozenset[str]
    rule: Reweighter | Curve

    @classmethod
    def check(
        cls,
        section: Reweight,
        names: tuple[str, ...],
        *,
        average: Average,
        tokens_per_step: float,
        pinned: Collection[str] = (),
        floor: Mapping[str, float] | None = None,
    ) -> Reweighting:
        """Find every mistake at start-up.

        Args:
            section, names, average, pinned: see the attributes.
            tokens_per_step: tokens of a global batch, for the default EMA horizon.
            floor: smallest multipliers, by domain.

        Raises:
            ConfigError: names the key.
        """
        rule: Reweighter | Curve
        if section.scope == "global_batch":
            horizon = default_horizon(tokens_per_step, len(names))
            rule = Reweighter.build(section, names, horizon=horizon, pinned=pinned, floor=floor)
            return cls(section, names, average, frozenset(pinned), rule)
        if floor:
            raise ConfigError(
                f"domains.{next(iter(floor))}.floor has no effect with scope: microbatch: take it "
                "out"
            )
        if pinned and section.unit == "sample":
            raise ConfigError(
                f"domains.{next(iter(pinned))}.pinned has no effect with unit: sample: take it out"
            )
        Bounds.build(names, section.clip, pinned)  # checks the names
        options = section.curve()
        rule = Curve(SHAPES[section.strategy], options.temperature, section.warmup_steps)
        return cls(section, names, average, frozenset(pinned), rule)

    def start(self, groups: Groups, device: torch.device, backend: Backend | None) -> Steering:
        """Before the first step.

        Args:
            groups: where this rank stands.
            device: where the losses live.
            backend: of the reduction; None for the automatic choice.
        """
        section, rule = self.section, self.rule
        if isinstance(rule, Reweighter):
            return Lagged(rule, self.average, device)
        if section.unit == "sample":
            return WithinSamples(rule, groups, device)
        given = section.model_fields_set
        return WithinMicrobatch(
            rule,
            groups,
            device,
            backend or select("auto", device),
            domains=len(self.names),
            pinned=torch.tensor([name in self.pinned for name in self.names]),
            objective=section.objective if "objective" in given else "domain_mean",
        )
