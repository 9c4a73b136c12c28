"""Domain losses → multipliers on per-token losses; owns the reweighting state of a checkpoint.

Three ways, one interface: multipliers for the samples of a microbatch, between its forward and its
backward pass. ``Lagged`` knows them before the step begins; ``WithinMicrobatch`` and
``WithinSamples`` work them out of this very microbatch, at the price of a collective each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from domain_pretrain.config import DomainConfig, Reweight
from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.ledger import Groups
from domain_pretrain.flow.microbatch import Microbatch, Weights
from domain_pretrain.flow.within import Curve, WithinMicrobatch, WithinSamples
from domain_pretrain.kernels.domain_reduce import Backend, select
from domain_pretrain.stats import SCALE, Average, Column, DomainStats
from domain_pretrain.strategies import Reweighter
from domain_pretrain.strategies.diagnostics import diagnose
from domain_pretrain.strategies.ema import default_horizon, reduced
from domain_pretrain.strategies.multipliers import Bounds
from domain_pretrain.strategies.shapes import SHAPES

FIXED = SCALE[Column.LOSS]


class Steering(Protocol):
    """What a step asks of a way of reweighting. Ranks: the whole last pipeline stage."""

    @property
    def lasting(self) -> torch.Tensor | None:
        """fp32 ``[D]``, in force for the whole step; None where each microbatch has its own."""

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
    def lasting(self) -> torch.Tensor:
        """See :class:`Steering`."""
        return self._multipliers

    def weights(self, microbatch: Microbatch) -> Weights:
        """See :class:`Steering`."""
        return Weights(microbatch.rows.domains, self._multipliers)

    def commit(self, read: Callable[[], DomainStats]) -> None:
        """See :class:`Steering`."""
        self.memory = self.reweighter.advance(self.memory, *reduced(read(), self._average))
        self._put()

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        """See :class:`Steering`: of the present weights, on the window's tokens."""
        tokens = stats.sums[:-1, Column.TOKENS] / FIXED
        memory = self.memory
        found = diagnose(memory.weights, memory.multipliers, tokens, self.reweighter.bounds)
        return {
            "effective_domains": found.effective_domains,
            "effective_tokens": found.effective_tokens,
            "clip_rate": found.clip_rate,
        }

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Steering`."""
        return self.reweighter.dump(self.memory)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Steering`."""
        if "ema" in state:
            self.memory = self.reweighter.load(state)
        else:  # of a run that weighed within the microbatch: estimates begin here
            self.memory = replace(self.reweighter.start(), step=int(state["step"]))
        self._put()

    def _put(self) -> None:
        self._multipliers.copy_(torch.from_numpy(self.memory.multipliers.astype(np.float32)))


def of_config(
    config: DomainConfig,
    section: Reweight | None,
    names: tuple[str, ...],
    groups: Groups,
    device: torch.device,
    *,
    tokens_per_step: float,
    backend: Backend | None,
) -> Steering | None:
    """:func:`build`, with what the config says of the domains; None where nothing reweights.

    Args:
        section: ``reweight`` of the config, as the command line changed it.
    """
    if section is None:
        return None
    domains = config.domains
    return build(
        section,
        names,
        groups,
        device,
        average=config.channel_loss.average,
        tokens_per_step=tokens_per_step,
        pinned=[name for name, domain in domains.items() if domain.pinned],
        floor={name: d.floor for name, d in domains.items() if d.floor is not None},
        backend=backend,
    )


def build(
    section: Reweight,
    names: tuple[str, ...],
    groups: Groups,
    device: torch.device,
    *,
    average: Average,
    tokens_per_step: float,
    pinned: Collection[str] = (),
    floor: Mapping[str, float] | None = None,
    backend: Backend | None = None,
) -> Steering:
    """The way of reweighting that the config asks for.

    Args:
        section: ``reweight`` of the config.
        names: the domains.
        groups: where this rank stands.
        device: where the losses live.
        average: ``channel_loss.average``.
        tokens_per_step: tokens of a global batch, for the default EMA horizon.
        pinned: domains whose multiplier is always 1.
        floor: smallest multipliers, by domain.
        backend: of the reduction; None for the automatic choice.

    Raises:
        ConfigError: names the key.
    """
    if floor and section.scope == "microbatch":
        raise ConfigError(
            f"domains.{next(iter(floor))}.floor has no effect with scope: microbatch: take it out"
        )
    if section.scope == "global_batch":
        horizon = default_horizon(tokens_per_step, len(names))
        reweighter = Reweighter.build(section, names, horizon=horizon, pinned=pinned, floor=floor)
        return Lagged(reweighter, average, device)
    options = section.curve()
    curve = Curve(SHAPES[section.strategy], options.temperature, section.warmup_steps)
    if section.unit == "sample":
        if pinned:
            raise ConfigError(
                f"domains.{next(iter(pinned))}.pinned has no effect with unit: sample: take it out"
            )
        return WithinSamples(curve, groups, device)
    Bounds.build(names, section.clip, pinned)  # checks the names
    return WithinMicrobatch(
        curve,
        groups,
        device,
        backend or select("auto", device),
        domains=len(names),
        pinned=torch.tensor([name in pinned for name in names]),
        objective=section.objective if "objective" in section.model_fields_set else "domain_mean",
    )
