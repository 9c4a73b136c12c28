"""Weights made within the forward pass: of one microbatch of all ranks, by domain or by sample.

One exact int64 all-reduce a microbatch, between its forward and its backward pass; everything after
it stays on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.microbatch import Microbatch, Weights
from domain_pretrain.kernels.domain_reduce import Backend
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.strategies.microbatch import microbatch_multipliers, sample_multipliers
from domain_pretrain.strategies.shapes import Shape
from domain_pretrain.strategies.temperature import Temperature

FIXED = SCALE[Column.LOSS]


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
    """A :class:`.steer.Steering`, what both have in common: a step count, and the temperature as a
    tensor that follows it."""

    step_multipliers = None  # see :class:`.steer.Steering`

    def __init__(self, curve: Curve, groups: Groups, device: torch.device) -> None:
        self._curve = curve
        self._groups = groups
        self._step = 0
        self._temperature = torch.ones((), dtype=torch.float64, device=device)
        self._warm = torch.zeros((), dtype=torch.bool, device=device)
        self.in_force: torch.Tensor | None = None
        self._put()

    def commit(self, read: Callable[[], DomainStats]) -> None:
        # Weights of the losses at hand need no sums of the step.
        self._step += 1
        self._put()

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        # These weights are gone with their microbatch.
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step = int(state["step"])
        self._put()

    def _put(self) -> None:
        after_warmup = self._step - self._curve.warmup_steps
        self._temperature.fill_(self._curve.temperature.at(after_warmup))
        self._warm.fill_(after_warmup >= 0)

    def _apply_warmup(self, multipliers: torch.Tensor) -> torch.Tensor:
        self.in_force = torch.where(self._warm, multipliers, 1.0).float()
        return self.in_force

    def _sum(self, sums: torch.Tensor) -> torch.Tensor:
        """Global sums: one all-reduce a microbatch over this rank's dp_cp group, in place."""
        self._groups.add(sums)
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
        backend: Backend,
        *,
        domains: int,
        pinned: torch.Tensor,
        objective: str,
    ) -> None:
        super().__init__(curve, groups, device)
        self._local = torch.zeros(domains + 1, len(Column), dtype=torch.int64, device=device)
        self._backend = backend
        self._pinned = pinned.to(device)
        self._objective: Any = objective

    def weights(self, microbatch: Microbatch) -> Weights:
        self._local.zero_()
        self._backend.domain_reduce(self._local, *microbatch.arguments())
        columns = self._local[:-1, [Column.LOSS, Column.TOKENS]]
        # A loss that is not finite adds nothing to its sum: such a domain is left out instead.
        bad = self._local[:-1, Column.NONFINITE, None]
        sums = self._sum(torch.cat([columns, bad * FIXED], dim=1))
        loss_sum = torch.where(sums[:, 2] > 0, torch.nan, sums[:, 0])
        multipliers = microbatch_multipliers(
            loss_sum,
            sums[:, 1],
            shape=self._curve.shape,
            temperature=self._temperature,
            objective=self._objective,
            pinned=self._pinned,
        )
        return Weights(microbatch.rows.domains, self._apply_warmup(multipliers))


class WithinSamples(_Within):
    """Unit ``sample``: every sample of a microbatch of all ranks is weighed by its own loss."""

    def weights(self, microbatch: Microbatch) -> Weights:
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
        multipliers = sample_multipliers(
            loss_sum, tokens, shape=self._curve.shape, temperature=self._temperature
        )
        own_rows = torch.arange(count, device=rows.tokens.device)
        multipliers = self._apply_warmup(multipliers).view(-1, count)[groups.dp_rank]
        return Weights(own_rows, multipliers, by_domain=False)
