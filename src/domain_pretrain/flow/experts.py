"""Which experts each domain's tokens go to, in the steps that are logged.

A router does not know whose tokens it is given, and of a pipeline only the last stage learns it. So
routers count by *row* of a microbatch, and the rows get their domains when the step ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from domain_pretrain.adapt.load import describe
from domain_pretrain.adapt.router import ENTROPY, MORE, TOKENS, UNIT, by_domain
from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.tap import Rows
from domain_pretrain.records.record import Experts


class ExpertCounts:
    """Counts of one step: expect → open → microbatches → close.

    Args:
        names: the domains.
        groups: where this rank stands.
        device: where its routers are.

    Attributes:
        counting: whether the step under way is counted.
    """

    def __init__(self, names: tuple[str, ...], groups: Groups, device: torch.device) -> None:
        self._names, self._groups, self._device = names, groups, device
        self.counting = False
        self._own: list[int] = []  # numbers of this rank's layers
        self._layers: list[int] = []  # of all ranks'
        self._experts = self._topk = 0
        self._world = Groups()  # of all ranks, as if there were no other parallelism
        self._counts: list[list[torch.Tensor]] = []  # of each own layer, by microbatch
        self._domains: list[torch.Tensor] = []  # of each microbatch, on the rank that hears them

    def begin(self, layers: Sequence[int], experts: int, topk: int) -> None:
        """Once, on every rank, before the first step.

        Args:
            layers: numbers of this rank's layers that have experts, from 1.
            experts: of such a layer, on all ranks together; any number on a rank without.
            topk: that a token is given to.
        """
        self._own, self._topk = [*layers], topk
        found = [(self._own, experts)]
        group = self._groups.model_parallel
        if group is not None:  # once: the stages of a pipeline have layers of their own
            found = [([], 0)] * dist.get_world_size(group)
            dist.all_gather_object(found, (self._own, experts), group=group)
        self._layers = sorted({layer for own, _ in found for layer in own})
        self._experts = max(count for _, count in found)
        self._world = Groups.data_parallel(self._device)

    def expect(self, *, logged: bool) -> None:
        """Before a step: whether it will be logged. In others, nothing is counted."""
        self.counting = logged

    def open(self) -> None:
        """At an attempt at the step: forget what an earlier one counted."""
        self._counts = [[] for _ in self._own]
        self._domains = []

    def hear(self, rows: Rows) -> None:
        """The rows of the next microbatch, on the rank that counts."""
        if self.counting:
            self._domains.append(rows.domains)

    def add(self, place: int, counts: torch.Tensor) -> None:
        """What the rows of its next microbatch were given by a router, on every rank.

        Of one router, microbatches come in their order, whatever the schedule.

        Args:
            place: of its layer, among this rank's.
            counts: see :func:`.adapt.router.count_rows`.
        """
        self._counts[place].append(counts)

    def close(self, microbatches: int, tokens: int) -> Experts | None:
        """The counts of all ranks, on every rank; None where the step was not counted.

        Collectives: one broadcast over the model-parallel group, 4 bytes a row of the step; then
        one all-reduce over all ranks, 8 bytes an expert of each layer and domain. Synchronises.

        Args:
            microbatches: that the step had on each data-parallel rank.
            tokens: that it had on all ranks.

        Raises:
            IntegrityError: not every token was counted once in every layer; on every rank alike.
        """
        if not self.counting:
            return None
        self.counting = False
        ids, domains = self._ids(microbatches), len(self._names)
        shape = (len(self._layers), domains + 1, self._experts + MORE)
        sums = torch.zeros(shape, dtype=torch.int64, device=self._device)
        for layer, counts in zip(self._own, self._counts, strict=True):
            # What is missing is noticed below, on every rank alike.
            if len(counts) == microbatches and sum(map(len, counts)) == len(ids):
                sums[self._layers.index(layer)] += by_domain(counts, ids, domains)
        self.open()
        self._world.add(sums)
        return self._read(sums.cpu().numpy(), tokens)

    def _ids(self, microbatches: int) -> torch.Tensor:
        """The domain of each row of the step, int32, on every rank."""
        groups = self._groups
        rows = microbatches * groups.micro_batch_size
        ids = torch.full((rows,), -1, dtype=torch.int32, device=self._device)
        if groups.is_counting and sum(map(len, self._domains)) == rows:
            ids = torch.cat(self._domains).int()
        if groups.model_parallel is not None:
            dist.broadcast(ids, src=groups.counting_rank, group=groups.model_parallel)
        return ids

    def _read(self, sums: np.ndarray[Any, np.dtype[np.int64]], tokens: int) -> Experts:
        known = sums[:, :-1]
        for layer, counted in zip(self._layers, known[..., TOKENS].sum(axis=1), strict=True):
            if counted != tokens:
                raise IntegrityError(
                    f"adapt.experts: layer {layer} counted {counted:,} tokens in a step of "
                    f"{tokens:,}: its router runs more or less than once for each of them, in a "
                    "way that the plugin does not know (a model of the script's own, or "
                    "recomputation without gradients); leave adapt.experts out"
                )
        return describe(
            self._names,
            self._layers,
            self._topk,
            known[..., :-MORE],
            known[..., TOKENS],
            known[..., ENTROPY].astype(np.float64) * UNIT,
        )
