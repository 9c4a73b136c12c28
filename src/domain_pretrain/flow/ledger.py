"""Domain sums of one step, in one buffer → one all-reduce → the sums of all ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from domain_pretrain.flow.conservation import HostSums
from domain_pretrain.flow.groups import Groups
from domain_pretrain.kernels.digest import WORDS, moments
from domain_pretrain.stats import Column, DomainStats

# What lies before the sums: own words, their moments over all ranks, the host's totals.
TOTALS = 4
HEAD = WORDS + 2 * WORDS + TOTALS


@dataclass(frozen=True)
class Sums:
    """A ledger's numbers, read.

    Attributes:
        stats: sums by domain.
        host: what the host's own loss function returned, summed.
        words: this rank's digest of what was in force.
        agreed: the moments of all ranks' digests, once reduced.
    """

    stats: DomainStats
    host: HostSums
    words: tuple[int, ...]
    agreed: tuple[int, ...]


class Ledger:
    """The sums of one attempt at a step (or of one evaluation), in one persistent int64 buffer.

    Args:
        domains: D.
        groups: where this rank stands.
        device: where the losses live.
        weighted: whether there is a second layer.
        derived: whether the second layer is made of the first by :meth:`weigh`, and not counted.

    Attributes:
        words: ``[WORDS]``: this rank's own digest of what was in force; not exchanged.
        sums: ``[1, D + 1, len(Column)]``, or ``[2, …]`` with reweighting, where the second layer
            has every token's mask times its multiplier.
        layers: of ``sums``, always the same tensors: each is an accumulator of the kernels.
        host: ``[TOTALS]``: ``totals`` and ``fractional``, beside one another; the kernels' totals.
        totals: ``[3]``: what the loss function returned, summed: loss in units of ``SCALE``,
            tokens, microbatches.
        fractional: ``[1]``: how many of those microbatches had a fractional mask.
        shared: the part that ranks exchange: ``8·((D + 1)·5 + 10)`` bytes, nearly twice that with
            a second layer that is counted.
    """

    def __init__(
        self,
        domains: int,
        groups: Groups,
        device: torch.device,
        *,
        weighted: bool = False,
        derived: bool = False,
    ) -> None:
        layer = (domains + 1, len(Column))
        layers = 1 + weighted
        self._groups = groups
        size = HEAD + layers * math.prod(layer)
        self._buffer = torch.zeros(size, dtype=torch.int64, device=device)
        self.words, self._moments, self.host, cells = self._buffer.split(
            [WORDS, 2 * WORDS, TOTALS, size - HEAD]
        )
        self.totals, self.fractional = self.host.split([3, 1])
        self.sums = cells.view(layers, *layer)
        self.layers = self.sums.unbind()
        self.shared = self._buffer[WORDS : HEAD + math.prod(layer) if derived else size]

    def empty(self, domains: int | None = None) -> Ledger:
        """Another, unweighted ledger: for sums of this one's, or of so many domains."""
        domains = self.sums.shape[1] - 1 if domains is None else domains
        return Ledger(domains, self._groups, self._buffer.device)

    def add(self, other: Ledger) -> None:
        """Add the sums of an unweighted ledger, which has not been reduced."""
        self._buffer += other._buffer

    def open(self) -> None:
        """Forget everything: a re-run of the step must not count twice."""
        self._buffer.zero_()

    def note_fractions(self, mask: torch.Tensor) -> None:
        """Count a microbatch whose mask is fractional: the host drops what is left of a token.

        For a host that sums: our own loss knows what it drops.

        Args:
            mask: of the whole batch, as it was read; on the CPU this costs the device nothing.
        """
        if not mask.is_floating_point():
            return
        whole = mask.round()
        if not mask.is_cpu:
            self.fractional.add_((mask != whole).any())
        elif not torch.equal(mask, whole):
            self.fractional.add_(1)

    def sign(self, words: torch.Tensor) -> None:
        """Add this rank's digest of what was in force, before :meth:`reduce`.

        Args:
            words: see :meth:`.Digest.of`.
        """
        self.words.copy_(words)
        self._moments.copy_(moments(words))

    def weigh(self, multipliers: torch.Tensor) -> None:
        """Fill the second layer of reduced sums, where a domain had one multiplier all step long.

        Args:
            multipliers: fp32 ``[D]``.
        """
        raw, weighted = self.sums[:, :-1]
        weighted.copy_(raw)
        for column in (Column.LOSS, Column.TOKENS, Column.SAMPLE_LOSS):
            weighted[:, column] = torch.round(raw[:, column].double() * multipliers).long()

    def reduce(self) -> None:
        """Make the sums global, on every rank. Called by every rank, once a step.

        Collectives: one all-reduce over dp_cp of the ranks that count, then one broadcast over
        the model-parallel group, of ``shared`` each.
        """
        groups = self._groups
        if groups.is_counting:
            groups.add(self.shared)
        if groups.model_parallel is not None:
            dist.broadcast(self.shared, src=groups.counting_rank, group=groups.model_parallel)

    def read(self, names: tuple[str, ...]) -> Sums:
        """The sums as numbers; synchronises with the device."""
        layer = self.sums.shape[1:]
        values = self._buffer[: HEAD + math.prod(layer)].cpu().numpy().copy()
        words, agreed, host, cells = np.split(values, np.cumsum([WORDS, 2 * WORDS, TOTALS]))
        stats = DomainStats(names, cells.reshape(layer))
        sums = HostSums.of(host.tolist(), self._groups.host_repeats)
        return Sums(stats, sums, tuple(words.tolist()), tuple(agreed.tolist()))
