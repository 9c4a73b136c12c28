"""One microbatch between its forward and its backward pass: tap → sums → weighted loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.ledger import Groups, Ledger
from domain_pretrain.flow.loss import count_microbatch, weighted_loss
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.flow.steer import Steering
from domain_pretrain.flow.tap import BatchTap, Rows, Source


@dataclass(frozen=True)
class Forward:
    """Where a microbatch is counted, and by what it is weighed.

    Attributes:
        groups: where this rank stands.
        ledger: takes the sums.
        steering: gives the multipliers; None where nothing reweights.
    """

    groups: Groups
    ledger: Ledger
    steering: Steering | None = None

    def wrap(self, forward_step: Callable[..., Any], source: Source) -> Callable[..., Any]:
        """The host's ``forward_step_func`` with the tap before it and the sums behind it."""
        groups = self.groups
        needed = groups.counts or (self.steering is not None and groups.last_stage)

        def tapped_forward_step(data_iterator: Any, *args: Any, **kwargs: Any) -> Any:
            # Ranks that read no data (TP rank > 0, middle stages) have no iterator.
            tap = None if data_iterator is None else BatchTap(data_iterator)
            output, loss_func = forward_step(tap, *args, **kwargs)
            if not needed or not callable(loss_func):
                return output, loss_func
            return output, self._wrap_loss(loss_func, tap, source)

        return tapped_forward_step

    def _wrap_loss(
        self, loss_func: Callable[..., Any], tap: BatchTap | None, source: Source
    ) -> Callable[..., Any]:
        def counted_loss(output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("non_loss_data"):
                return loss_func(output, *args, **kwargs)
            rows = self._rows(tap, source, output.device)
            microbatch = Microbatch.build(output, _loss_mask(loss_func), rows, self.groups)
            # Before the host's own check for NaN, which raises without naming a domain.
            multipliers = self._count(microbatch)
            result = loss_func(output, *args, **kwargs)
            if not isinstance(result, tuple) or len(result) != 3:
                raise IntegrityError(
                    "the script's loss function must return (loss_sum, num_tokens, report), as "
                    "Megatron's pretrain_gpt.py does since core 0.12; it returned "
                    f"{len(result) if isinstance(result, tuple) else type(result).__name__}"
                )
            if self.groups.counts:
                self.ledger.add_host(result[0], result[1])
            if multipliers is None:
                return result
            return (weighted_loss(microbatch, multipliers), *result[1:])

        return counted_loss

    def loss(self, losses: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The same for a loop that calls us; see :meth:`DomainStep.loss`."""
        rows = Rows(ids.to(torch.int64), mask.float().sum(dim=1))
        microbatch = Microbatch.build(losses, mask, rows, self.groups)
        multipliers = self._count(microbatch)
        loss = weighted_loss(microbatch, None)
        self.ledger.add_host(loss, microbatch.mask.sum())
        return loss if multipliers is None else weighted_loss(microbatch, multipliers)

    def _count(self, microbatch: Microbatch) -> torch.Tensor | None:
        """Add to the ledger; the multipliers of the samples, fp32 ``[b]``, or None."""
        multipliers = self.steering.sample_multipliers(microbatch) if self.steering else None
        if self.groups.counts:
            count_microbatch(self.ledger, microbatch, multipliers)
        return multipliers

    def _rows(self, tap: BatchTap | None, source: Source, device: torch.device) -> Rows:
        rows = None if tap is None else tap.rows(source, device)
        groups = self.groups
        if self.steering is not None and groups.tensor_parallel is not None:
            return Rows.shared(
                rows,
                groups.micro_batch_size,
                device,
                group=groups.tensor_parallel,
                source=groups.tensor_source,
            )
        assert rows is not None  # this rank counts, so it reads data
        return rows


def _loss_mask(loss_func: Callable[..., Any]) -> torch.Tensor:
    """The mask that the host's forward step bound into its loss partial."""
    args = getattr(loss_func, "args", ())
    mask = args[0] if args else getattr(loss_func, "keywords", {}).get("loss_mask")
    if not isinstance(mask, torch.Tensor):
        raise IntegrityError(
            "the script's forward step must return (output, partial(loss_func, loss_mask, …)), as "
            f"Megatron's pretrain_gpt.py does; it returned {loss_func!r}"
        )
    return mask
