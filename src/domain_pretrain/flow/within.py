"""Weights made within the forward pass: of one microbatch of all ranks, by domain or by sample.

Each microbatch costs one exact int64 all-reduce over the dp_cp group, between its forward and its
backward pass. What follows stays on the device: no value is read back by the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.microbatch import Microbatch, Weights
from domain_pretrain.flow.tap import Rows
from domain_pretrain.kernels.domain_reduce import Backend
from domain_pretrain.stats import SCALE, Column, DomainStats
from domain_pretrain.strategies.course import Course
from domain_pretrain.strategies.microbatch import microbatch_multipliers, sample_multipliers
from domain_pretrain.strategies.registry import StrategyOptions, Terms
from domain_pretrain.strategies.section import WithinReweight
from domain_pretrain.strategies.shapes import SHAPES

FIXED = SCALE[Column.LOSS]


class _Within:
    """What both ways share of a :class:`.steer.Steering`: the count of steps, and the temperature
    that follows it, as a tensor."""

    step_multipliers = None  # each microbatch has its own

    def __init__(
        self, section: WithinReweight, groups: Groups, device: torch.device, backend: Backend
    ) -> None:
        """Before the first step.

        Args:
            section: of the config.
            groups: where this rank stands.
            device: where the losses live.
            backend: of the reduction.
        """
        self._section = section
        self._backend = backend
        self._shape = SHAPES[section.strategy]
        self._groups = groups
        self._step = 0
        self._temperature = torch.ones((), dtype=torch.float64, device=device)
        self._warm = torch.zeros((), dtype=torch.bool, device=device)
        self.in_force: torch.Tensor | None = None
        self._put()

    def commit(self, read: Callable[[], DomainStats], batch_tokens: int, course: Course) -> None:
        # The weights come from each microbatch: the step's sums are not needed.
        self._step += 1
        self._put()

    @property
    def terms(self) -> Terms:
        return StrategyOptions(), {}

    def diagnostics(self, stats: DomainStats) -> dict[str, float]:
        # These weights went with their microbatch.
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self._step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._step = int(state["step"])
        self._put()

    def _put(self) -> None:
        after_warmup = self._step - self._section.warmup_steps
        self._temperature.fill_(self._section.temperature.at(after_warmup))
        self._warm.fill_(after_warmup >= 0)

    def _apply_warmup(self, multipliers: torch.Tensor) -> torch.Tensor:
        # What ranks compare at the end of the step is that of its last microbatch.
        self.in_force = torch.where(self._warm, multipliers, 1.0).float()
        return self.in_force

    def _sum(self, sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sums and tokens of all ranks: one all-reduce per microbatch over the dp_cp group.

        A loss that is not finite adds nothing to its sum, which is made NaN for it: it is left out.

        Args:
            sums: int64 ``[..., len(Column)]``, added up in place.
        """
        self._groups.add(sums)
        loss_sum = sums[..., Column.LOSS].double() / FIXED
        loss_sum = torch.where(sums[..., Column.NONFINITE] > 0, torch.nan, loss_sum)
        return loss_sum, sums[..., Column.TOKENS].double() / FIXED


class WithinMicrobatch(_Within):
    """Unit ``domain``: the original recipe, over one microbatch of all ranks.

    The sums of all context parallel and data parallel ranks, then channel loss, normalisation,
    shape and softmax.
    """

    def __init__(
        self,
        section: WithinReweight,
        groups: Groups,
        device: torch.device,
        backend: Backend,
        *,
        pinned: torch.Tensor,
    ) -> None:
        """As above, with ``pinned``: bool ``[D]``, the domains that are left as they are."""
        super().__init__(section, groups, device, backend)
        self._sums = torch.zeros(len(pinned) + 1, len(Column), dtype=torch.int64, device=device)
        self._pinned = pinned.to(device)

    def weights(self, microbatch: Microbatch) -> Weights:
        self._sums.zero_()
        self._backend.domain_reduce(microbatch.inputs()._replace(accumulator=self._sums))
        loss_sum, tokens = self._sum(self._sums)
        multipliers = microbatch_multipliers(
            loss_sum[:-1],
            tokens[:-1],
            shape=self._shape,
            temperature=self._temperature,
            objective=self._section.objective,
            pinned=self._pinned,
        )
        return Weights(self._apply_warmup(multipliers))


class WithinSamples(_Within):
    """Unit ``sample``: each sample of a microbatch of all ranks is weighed by its own loss."""

    _sums = torch.empty(0, 0)  # [data parallel ranks, samples + 1, columns]
    _own = _sums  # this rank's; kept, as the reduction plans its launches for each accumulator

    def weights(self, microbatch: Microbatch) -> Weights:
        groups, rows = self._groups, microbatch.rows
        count, device = len(rows), rows.packed.device
        if self._sums.shape[1] != count + 1:
            ranks = groups.dp_cp_size // groups.cp_size
            size = (ranks, count + 1, len(Column))
            self._sums = torch.zeros(size, dtype=torch.int64, device=device)
            self._own = self._sums[groups.dp_rank]
        # Each data parallel rank fills its own rows, each context parallel rank adds its part of
        # them: one exact all-reduce completes all samples on all ranks.
        self._sums.zero_()
        own_rows = torch.arange(count, dtype=torch.int32, device=device)
        by_sample = replace(microbatch, rows=Rows.of(own_rows, rows.tokens))
        self._backend.domain_reduce(by_sample.inputs()._replace(accumulator=self._own))
        loss_sum, tokens = self._sum(self._sums)
        multipliers = sample_multipliers(
            loss_sum[:, :-1].flatten(),
            tokens[:, :-1].flatten(),
            shape=self._shape,
            temperature=self._temperature,
        )
        multipliers = self._apply_warmup(multipliers).view(-1, count)[groups.dp_rank]
        return Weights(multipliers, own_rows)
