"""Domain losses → multipliers on per-token losses; owns the reweighting state of a checkpoint.

Three ways with one interface: multipliers for the samples of a microbatch, between its forward and
its backward pass. ``Lagged`` knows them before the step begins; ``WithinMicrobatch`` and
``WithinSamples`` compute them from that very microbatch, which costs a collective each time.
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
from domain_pretrain.flow.within import WithinMicrobatch, WithinSamples
from domain_pretrain.kernels.domain_reduce import Backend, select
from domain_pretrain.rules.options import check_domains
from domain_pretrain.stats import SCALE, Average, Column, DomainStats
from domain_pretrain.strategies import Reweighter
from domain_pretrain.strategies.course import Course
from domain_pretrain.strategies.diagnostics import diagnose
from domain_pretrain.strategies.ema import default_horizon, reduced
from domain_pretrain.strategies.registry import Terms
from domain_pretrain.strategies.section import LaggedReweight, WithinReweight


class Steering(Protocol):
    """What a step asks of a way of reweighting. Valid on all ranks of the last pipeline stage."""

    @property
    def step_multipliers(self) -> torch.Tensor | None:
        """fp32 ``[D]``, in force during the whole step; None where each microbatch has its own."""

    @property
    def in_force(self) -> torch.Tensor | None:
        """fp32, the multipliers that were used last, the same on all ranks; None before any."""

    def weights(self, microbatch: Microbatch) -> Weights:
        """What multiplies the samples' per-token losses. No host sync."""

    def commit(self, read: Callable[[], DomainStats], batch_tokens: int, course: Course) -> None:
        """Learn from a step that updated the model, on every rank.

        Args:
            read: returns the step's exact global sums; waits for the device.
            batch_tokens, course: see :class:`.Moment`.
        """

    @property
    def terms(self) -> Terms:
        """What the rule says of itself, and what it keeps as of now."""

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        """What the weights do to the tokens of a window, in a few numbers."""

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, by domain name; the same on every rank."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse."""


class Lagged:
    """Scope ``global_batch``: what step t measured is in force in step t + 1.

    It adds no collective. The rules run on the host, in float64, on the reduced sums that every
    rank has. Reading those waits for the step's one all-reduce, at a point where the host has
    already waited for the gradient norm.
    """

    def __init__(self, reweighter: Reweighter, average: Average, device: torch.device) -> None:
        self.reweighter = reweighter
        self.memory = self._before = reweighter.start()  # and as the last step had it
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
        return Weights(self._multipliers)

    def commit(self, read: Callable[[], DomainStats], batch_tokens: int, course: Course) -> None:
        sums = reduced(read(), self._average)
        self._before = self.memory
        self.memory = self.reweighter.advance(
            self.memory, *sums, batch_tokens=batch_tokens, course=course
        )
        self._put()

    @property
    def terms(self) -> Terms:
        return self.reweighter.strategy.terms, self.memory.state

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        # The weights are those of the last step, the tokens those of the window.
        tokens = stats.sums[:-1, Column.TOKENS] / SCALE[Column.TOKENS]
        memory, rule = self._before, self.reweighter
        if memory.step < rule.options.warmup_steps or not memory.weights.any():
            return {}  # nothing was weighed
        return asdict(diagnose(memory.weights, memory.multipliers, tokens, rule.bounds))

    def state_dict(self) -> dict[str, Any]:
        return self.reweighter.dump(self.memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if "ema" in state:
            self.memory = self.reweighter.load(state)
        else:  # saved by a run that weighed within the microbatch: the estimates start here
            self.memory = replace(self.reweighter.start(), step=int(state["step"]))
        self._before = self.memory
        self._put()

    def _put(self) -> None:
        self._multipliers.copy_(torch.from_numpy(self.memory.multipliers.astype(np.float32)))


@dataclass(frozen=True)
class Reweighting:
    """What the ``reweight`` section asks for, checked for a run's domains; no device is needed.

    Attributes:
        rule: what weighs whole steps, or how to weigh within the forward pass.
        names: the domains.
        average: ``channel_loss.average``.
        pinned: domains whose multiplier is always 1.
    """

    rule: Reweighter | WithinReweight
    names: tuple[str, ...]
    average: Average
    pinned: frozenset[str]

    @classmethod
    def check(
        cls,
        section: LaggedReweight | WithinReweight,
        names: tuple[str, ...],
        *,
        average: Average,
        tokens_per_step: float | None = None,
        pinned: Collection[str] = (),
        floor: Mapping[str, float] | None = None,
        offers: Collection[str] = (),
    ) -> Reweighting:
        """Find every mistake at start-up.

        Args:
            section: of the config.
            names, average, pinned: see the attributes.
            tokens_per_step: tokens of a global batch, for the default EMA horizon; None: each
                step says how many it has.
            floor: smallest multipliers, by domain.
            offers: what the run tells of :class:`.Course`.

        Raises:
            ConfigError: names the key.
        """
        rule: Reweighter | WithinReweight
        if isinstance(section, LaggedReweight):
            horizon = tokens_per_step and default_horizon(tokens_per_step, len(names))
            rule = Reweighter.build(
                section,
                names,
                horizon=horizon,
                pinned=pinned,
                floor=floor,
                offers=offers,
                average=average,
            )
        else:
            rule = section
            _check_within(section, names, pinned, floor)
        return cls(rule, names, average, frozenset(pinned))

    def agreed(self) -> str:
        """What every rank must have read alike; without paths, which may differ by node."""
        if isinstance(self.rule, Reweighter):
            return self.rule.agreed()
        return repr((self.rule.model_dump(), sorted(self.pinned)))

    def start(self, groups: Groups, device: torch.device, backend: Backend | None) -> Steering:
        """Before the first step.

        Args:
            groups: where this rank stands.
            device: where the losses live.
            backend: of the reduction; None for the automatic choice.
        """
        if isinstance(self.rule, Reweighter):
            return Lagged(self.rule, self.average, device)
        backend = backend or select("auto", device)
        if self.rule.unit == "sample":
            return WithinSamples(self.rule, groups, device, backend)
        pinned = torch.tensor([name in self.pinned for name in self.names])
        return WithinMicrobatch(self.rule, groups, device, backend, pinned=pinned)


def _check_within(
    section: WithinReweight,
    names: tuple[str, ...],
    pinned: Collection[str],
    floor: Mapping[str, float] | None,
) -> None:
    """Refuse what the domains ask for and nothing does within the forward pass."""
    if floor:
        raise ConfigError(
            f"domains.{next(iter(floor))}.floor has no effect with scope: microbatch: take it out"
        )
    if pinned and section.unit == "sample":
        raise ConfigError(
            f"domains.{next(iter(pinned))}.pinned has no effect with unit: sample: take it out"
        )
    check_domains("pinned", dict.fromkeys(pinned), names, complete=False)
