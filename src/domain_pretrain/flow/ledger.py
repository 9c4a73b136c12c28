"""Domain sums → one all-reduce → the sums of the step; windows of steps; what was consumed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.errors import IntegrityError
from domain_pretrain.kernels.domain_reduce.probe import adds_int64
from domain_pretrain.kernels.domain_reduce.transport import all_reduce_limbs
from domain_pretrain.stats import SCALE, Column, DomainStats


@dataclass(frozen=True)
class Groups:
    """Where this rank stands in the layout.

    Attributes:
        last_stage: this rank computes losses.
        counts: this rank adds to the sums: last pipeline stage, TP rank 0.
        dp_cp: data × context parallel group of this rank; None for a group of one.
        adds_int64: whether dp_cp adds int64 exactly, alike on all of its ranks; else sums travel
            as int32 limbs, with the same result.
        tensor_parallel: TP group of this rank; None for a group of one.
        tensor_source: global rank of its TP rank 0, the one that reads data.
        model_parallel: TP × PP group of this rank; None for a group of one.
        source: global rank in ``model_parallel`` that counts.
        dp_cp_size, dp_rank, cp_rank, cp_size: sizes and position.
        micro_batch_size: samples in a training microbatch.
        host_repeats: how many CP ranks report the same host sums (cp_size on hosts that reduce
            over CP inside the loss function, else 1).
    """

    last_stage: bool = True
    counts: bool = True
    dp_cp: Any = None
    adds_int64: bool = True
    tensor_parallel: Any = None
    tensor_source: int = 0
    model_parallel: Any = None
    source: int = 0
    dp_cp_size: int = 1
    dp_rank: int = 0
    cp_rank: int = 0
    cp_size: int = 1
    micro_batch_size: int = 1
    host_repeats: int = 1

    @classmethod
    def data_parallel(cls, device: torch.device) -> Groups:
        """Every process of ``torch.distributed`` is a data parallel rank; without it, one alone.

        Called by all of them; ``device`` is where their sums are.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        world = dist.group.WORLD
        return cls(
            dp_cp=world,
            adds_int64=adds_int64(device, world),
            dp_cp_size=dist.get_world_size(),
            dp_rank=dist.get_rank(),
        )

    def add(self, sums: torch.Tensor) -> None:
        """Add int64 ``sums`` over dp_cp, in place: one all-reduce, on every rank of the group."""
        if self.dp_cp is None:
            return
        all_reduce = dist.all_reduce if self.adds_int64 else all_reduce_limbs
        all_reduce(sums, group=self.dp_cp)


@dataclass(frozen=True)
class HostSums:
    """What the host's own loss function returned, summed like the domain sums."""

    loss: float
    tokens: int
    microbatches: int


class Ledger:
    """The sums of one attempt at a step (or of one evaluation), in one persistent int64 buffer.

    Args:
        domains: D.
        groups: where this rank stands.
        device: where the losses live.
        weighted: whether there is a second layer.
        derived: whether the second layer is made of the first by :meth:`weigh`, and not counted.

    Attributes:
        sums: ``[1, D + 1, len(Column)]``, or ``[2, …]`` with reweighting, where the second layer
            has every token's mask times its multiplier.
        totals: ``[3]``: what the loss function returned, summed: loss in units of ``SCALE``,
            tokens, microbatches.
        shared: the part that ranks exchange: ``8·((D + 1)·5 + 3)`` bytes, nearly twice that with a
            second layer that is counted.
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
        self._buffer = torch.zeros(3 + layers * math.prod(layer), dtype=torch.int64, device=device)
        self.totals = self._buffer[:3]
        self.sums = self._buffer[3:].view(layers, *layer)
        self.shared = self._buffer[: 3 + math.prod(layer)] if derived else self._buffer

    def open(self) -> None:
        """Forget everything: a re-run of the step must not count twice."""
        self._buffer.zero_()

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
        if groups.counts:
            groups.add(self.shared)
        if groups.model_parallel is not None:
            dist.broadcast(self.shared, src=groups.source, group=groups.model_parallel)

    def read(self, names: tuple[str, ...]) -> tuple[DomainStats, HostSums]:
        """The sums as numbers; synchronises with the device."""
        values = self.shared.cpu().numpy()
        loss, tokens, microbatches = (int(v) for v in values[:3])
        repeats = self._groups.host_repeats
        cells = self.sums[0].numel()
        stats = DomainStats(names, values[3 : 3 + cells].reshape(self.sums.shape[1:]).copy())
        return stats, HostSums(loss / SCALE[Column.LOSS] / repeats, tokens // repeats, microbatches)


def check_conservation(stats: DomainStats, host: HostSums) -> None:
    """Σ over domains must equal what the host's own loss function summed.

    Tokens must be equal (a fractional mask: to less than one token a microbatch, which is what
    the host cuts off). Losses: the host adds fp32 numbers in fp32, the ledger in fixed point, so
    they agree to fp32 rounding.

    Raises:
        IntegrityError: with both numbers.
    """
    if stats.invalid_tokens:
        raise IntegrityError(
            f"{stats.invalid_tokens:g} tokens carry a domain id outside of the "
            f"{len(stats.names)} domains: the dataset ids do not fit the catalog"
        )
    total = stats.total
    slack = 0 if float(total.tokens).is_integer() else host.microbatches
    if abs(total.tokens - host.tokens) > slack:
        raise IntegrityError(
            f"the domains hold {total.tokens:,} loss tokens in this step, the host's loss "
            f"function counted {host.tokens:,}: some tokens are missing or counted twice"
        )
    if total.nonfinite:
        return
    if abs(total.loss_sum - host.loss) > 1e-5 * abs(host.loss) + 1e-6 * host.tokens:
        raise IntegrityError(
            f"the domain losses add up to {total.loss_sum!r} nats in this step, the host's loss "
            f"function to {host.loss!r}: the script's loss is not Σ mask·loss of the model output, "
            "which the channel loss is defined by"
        )


class Windows:
    """Sums since the last console line, since the last TensorBoard point, and since the start.

    The device keeps ``int64 [3, L, D + 1, len(Column)]`` with the ledger's L layers; a step is
    added by one operation. Consumed totals move to Python integers whenever they are read, so that
    they never overflow.
    """

    LOG, SCALARS, CONSUMED = range(3)

    def __init__(self, names: tuple[str, ...], device: torch.device, *, layers: int = 1) -> None:
        self.names = names
        shape = (3, layers, len(names) + 1, len(Column))
        self._sums = torch.zeros(shape, dtype=torch.int64, device=device)
        self._tokens = [0] * len(names)  # fixed point, SCALE[Column.TOKENS]
        self._samples = [0] * len(names)

    def add(self, step: torch.Tensor, *, skipped: bool) -> None:
        """Add a step's global sums ``[L, D + 1, len(Column)]``.

        A step whose update was skipped (overflow) consumed its data, but is not in the host's
        average either.
        """
        if skipped:
            self._sums[self.CONSUMED] += step
        else:
            self._sums += step

    def read(self, window: int) -> list[DomainStats]:
        """The sums of a window, a DomainStats for each layer; synchronises with the device."""
        layers = self._sums[window].cpu().numpy().copy()
        return [DomainStats(self.names, layer) for layer in layers]

    def restart(self, window: int) -> None:
        """Start a window anew."""
        self._sums[window].zero_()

    def _settle(self) -> None:
        for index, row in enumerate(self.read(self.CONSUMED)[0].sums[:-1]):
            self._tokens[index] += int(row[Column.TOKENS])
            self._samples[index] += int(row[Column.SAMPLES])
        self.restart(self.CONSUMED)

    def consumed(self) -> tuple[dict[str, float], dict[str, int]]:
        """Tokens and samples per domain since training began; synchronises with the device."""
        self._settle()
        tokens = {
            name: count / SCALE[Column.TOKENS]
            for name, count in zip(self.names, self._tokens, strict=True)
        }
        return tokens, dict(zip(self.names, self._samples, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, by domain name; the same on every rank."""
        self._settle()
        open_sums = self._sums[: self.CONSUMED].cpu()
        return {
            "consumed": {
                name: {"tokens": tokens, "samples": samples}
                for name, tokens, samples in zip(
                    self.names, self._tokens, self._samples, strict=True
                )
            },
            "windows": {
                name: open_sums[:, :, index].tolist() for index, name in enumerate(self.names)
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore by name; a domain that the state does not know starts at zero."""
        self._sums.zero_()
        for index, name in enumerate(self.names):
            consumed = state["consumed"].get(name, {"tokens": 0, "samples": 0})
            self._tokens[index] = int(consumed["tokens"])
            self._samples[index] = int(consumed["samples"])
            if name in state["windows"]:
                # Where the run before did not reweight, its multipliers were one: the unweighted
                # layer stands for both.
                window = torch.tensor(state["windows"][name], dtype=torch.int64)
                window = window.expand(-1, 2, -1) if window.shape[1] == 1 else window
                layers = self._sums.shape[1]
                self._sums[: self.CONSUMED, :, index] = window[:, :layers].to(self._sums.device)
