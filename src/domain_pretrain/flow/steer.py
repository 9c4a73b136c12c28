"""Domain losses → multipliers on per-token losses; owns the reweighting state of a checkpoint.

Three ways, one interface: a multiplier for every sample of a microbatch, between its forward and
its backward pass. ``Lagged`` knows them before the step begins; ``WithinMicrobatch`` and
``WithinSamples`` work them out of this very microbatch, at the price of a collective each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist

from domain_pretrain.config import Reweight
from domain_pretrain.errors import ConfigError
from domain_pretrain.flow.ledger import Groups
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.kernels.domain_reduce import domain_reduce
from domain_pretrain.stats import SCALE, Average, Column, DomainStats
from domain_pretrain.strategies import Reweighter
from domain_pretrain.strategies.diagnostics import diagnose
from domain_pretrain.strategies.ema import default_horizon, reduced
from domain_pretrain.strategies.microbatch import microbatch_weights
from domain_pretrain.strategies.multipliers import Bounds
from domain_pretrain.strategies.options import Temperature
from domain_pretrain.strategies.sample import sample_weights
from domain_pretrain.strategies.shapes import SHAPES, Shape

FIXED = SCALE[Column.LOSS]


class Steering(Protocol):
    """What a step asks of a way of reweighting. Ranks: the whole last pipeline stage."""

    def sample_multipliers(self, microbatch: Microbatch) -> torch.Tensor:
        """fp32 ``[b]``: the multiplier of each sample's per-token losses. No host sync."""

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

    def sample_multipliers(self, microbatch: Microbatch) -> torch.Tensor:
        """See :class:`Steering`."""
        return self._multipliers[microbatch.rows.domains]

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


@dataclass(frozen=True)
class Curve:
    """What the two scopes inside the forward pass can be told.

    Attributes:
        shape: of strategies/shapes.py.
        temperature: number or schedule.
        warmup_steps: first optimizer steps, in which every multiplier is exactly 1.
    """

    shape: Shape
    temperature: Temperature
    warmup_steps: int


class _Within:
    """Common to both: a step count, and the temperature as a tensor that follows it."""

    def __init__(self, curve: Curve, groups: Groups, device: torch.device) -> None:
        self._curve = curve
        self._groups = groups
        self._step = 0
        self._temperature = torch.ones((), dtype=torch.float64, device=device)
        self._warm = torch.zeros((), dtype=torch.bool, device=device)
        self._put()

    def commit(self, read: Callable[[], DomainStats]) -> None:
        """See :class:`Steering`: nothing to read, these weights come from the losses at hand."""
        self._step += 1
        self._put()

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        """See :class:`Steering`: these weights are gone with their microbatch."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Steering`."""
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`Steering`."""
        self._step = int(state["step"])
        self._put()

    def _put(self) -> None:
        after_warmup = self._step - self._curve.warmup_steps
        self._temperature.fill_(self._curve.temperature.at(after_warmup))
        self._warm.fill_(after_warmup >= 0)

    def _in_force(self, multipliers: torch.Tensor) -> torch.Tensor:
        return torch.where(self._warm, multipliers, 1.0).float()

    def _sum(self, sums: torch.Tensor) -> torch.Tensor:
        """Global sums: one all-reduce a microbatch over this rank's dp_cp group, in place."""
        if self._groups.dp_cp is not None:
            dist.all_reduce(sums, group=self._groups.dp_cp)
        return sums.double() / FIXED


class WithinMicrobatch(_Within):
    """Scope ``microbatch``: the original recipe, over one microbatch of all ranks.

    Sums go over context parallel and data parallel ranks in one exact int64 all-reduce; then
    channel loss, normalisation, shape and softmax, all on the device.
    """

    def __init__(
        self,
        curve: Curve,
        groups: Groups,
        device: torch.device,
        *,
        domains: int,
        pinned: torch.Tensor,
        objective: str,
    ) -> None:
        super().__init__(curve, groups, device)
        self._local = torch.zeros(domains + 1, len(Column), dtype=torch.int64, device=device)
        self._pinned = pinned.to(device)
        self._objective: Any = objective

    def sample_multipliers(self, microbatch: Microbatch) -> torch.Tensor:
        """See :class:`Steering`."""
        self._local.zero_()
        domain_reduce(self._local, *microbatch.arguments())
        columns = self._local[:-1, [Column.LOSS, Column.TOKENS]]
        # A loss that is not finite adds nothing to its sum: such a domain is left out instead.
        bad = self._local[:-1, Column.NONFINITE, None]
        sums = self._sum(torch.cat([columns, bad * FIXED], dim=1))
        loss_sum = torch.where(sums[:, 2] > 0, torch.nan, sums[:, 0])
        _, multipliers = microbatch_weights(
            loss_sum,
            sums[:, 1],
            shape=self._curve.shape,
            temperature=self._temperature,
            objective=self._objective,
            pinned=self._pinned,
        )
        return self._in_force(multipliers)[microbatch.rows.domains]


class WithinSamples(_Within):
    """Unit ``sample``: every sample of a microbatch of all ranks is weighed by its own loss."""

    def sample_multipliers(self, microbatch: Microbatch) -> torch.Tensor:
        """See :class:`Steering`."""
        groups, rows = self._groups, microbatch.rows
        count = rows.tokens.numel()
        # Every data parallel rank fills its own rows, every context parallel rank adds its part:
        # one exact all-reduce makes all samples complete on all ranks.
        sums = torch.zeros(
            groups.dp_cp_size // groups.cp_size,
            count,
            2,
            dtype=torch.int64,
            device=rows.tokens.device,
        )
        own = sums[groups.dp_rank]
        losses, mask = microbatch.losses.detach().float(), microbatch.mask.float()
        terms = torch.round((losses * mask) * FIXED).to(torch.int64)
        own[:, 0].index_add_(0, microbatch.row_of_token().reshape(-1), terms.reshape(-1))
        if groups.cp_rank == 0:
            own[:, 1] = torch.round(rows.tokens * FIXED).to(torch.int64)
        loss_sum, tokens = self._sum(sums).reshape(-1, 2).unbind(1)
        _, multipliers = sample_weights(
            loss_sum, tokens, shape=self._curve.shape, temperature=self._temperature
        )
        return self._in_force(multipliers).view(-1, count)[groups.dp_rank]


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
        domains=len(names),
        pinned=torch.tensor([name in pinned for name in names]),
        objective=section.objective if "objective" in section.model_fields_set else "domain_mean",
    )
