"""One microbatch between its forward and its backward pass: tap → sums → weighted loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.experts import ExpertCounts
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.flow.loss import Host, count, count_weighted, counted_loss, weighted_loss
from domain_pretrain.flow.microbatch import Microbatch, Weights
from domain_pretrain.flow.steer import Steering
from domain_pretrain.flow.tap import BatchTap, Rows, Source
from domain_pretrain.kernels.domain_reduce import Backend, DomainLoss

# A loss function with this attribute lets us sum instead of it: what it makes of the sums,
# ``(loss, report [2], num_tokens) -> (loss, num_tokens, report)``.
FROM_SUMS = "from_sums"


@dataclass(frozen=True)
class Forward:
    """Where a microbatch is counted, and by what it is weighed.

    Attributes:
        groups: where this rank stands.
        ledger: takes the sums.
        backend: makes them.
        steering: gives the multipliers; None where nothing reweights.
        experts: hears whose samples a microbatch has; None where no experts are counted.
    """

    groups: Groups
    ledger: Ledger
    backend: Backend
    steering: Steering | None = None
    experts: ExpertCounts | None = None

    def wrap(self, forward_step: Callable[..., Any], source: Source) -> Callable[..., Any]:
        """The host's ``forward_step_func`` with the tap before it and the sums behind it."""
        groups = self.groups
        needed = groups.is_counting or (self.steering is not None and groups.last_stage)

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
        def tapped_loss(output: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("non_loss_data"):
                return loss_func(output, *args, **kwargs)
            if not isinstance(output, torch.Tensor):
                raise IntegrityError(
                    f"the model returned a {type(output).__name__} instead of one loss per token: "
                    "it has losses besides those of the tokens (BERT's sentence order, for "
                    "example), which belong to no domain; train it without --channel-loss"
                )
            rows = self._rows(tap, source, output)
            if self.experts is not None and self.groups.is_counting:
                self.experts.hear(rows)
            microbatch = Microbatch.build(output, loss_mask(loss_func), rows, self.groups)
            weights = self.steering.weights(microbatch) if self.steering else None
            finish = getattr(getattr(loss_func, "func", None), FROM_SUMS, None)
            if finish is not None and self.groups.is_counting and self.backend.fused:
                return finish(*self._counted(microbatch, weights))
            if tap is not None and tap.loss_mask is not None and self.groups.is_counting:
                self.ledger.note_fractions(tap.loss_mask)
            try:
                result = loss_func(output, *args, **kwargs)
            except Exception:
                # The host's check for NaN names no domain; ours will, out of these sums.
                self._count(microbatch, None)
                raise
            if not isinstance(result, tuple) or len(result) != 3:
                raise IntegrityError(
                    "the script's loss function must return (loss_sum, num_tokens, report), as "
                    "Megatron's pretrain_gpt.py does since core 0.12; it returned "
                    f"{len(result) if isinstance(result, tuple) else type(result).__name__}"
                )
            if weights is None:
                self._count(microbatch, result[:2])
                return result
            if self.groups.is_counting:
                loss = self._counted(microbatch, weights, result[:2]).loss
            else:
                loss = weighted_loss(self.backend, microbatch, weights, result[0])
            return (loss, *result[1:])

        return tapped_loss

    def loss(self, losses: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The same for a loop that calls us; see :meth:`DomainStep.loss`."""
        integers = not (ids.is_floating_point() or ids.is_complex())
        if mask.dim() != 2 or ids.shape != mask.shape[:1] or not integers:
            raise ValueError(
                "loss takes loss_mask [b, s] and ids [b], one integer for each sample; got "
                f"{tuple(mask.shape)} and {ids.dtype} {tuple(ids.shape)}"
            )
        rows = Rows.of(ids, mask.float().sum(dim=1))
        microbatch = Microbatch.build(losses, mask, rows, self.groups)
        weights = self.steering.weights(microbatch) if self.steering else None
        return self._counted(microbatch, weights).loss

    def _count(self, microbatch: Microbatch, host: Host | None) -> None:
        if self.groups.is_counting:
            count(self.backend, self.ledger, microbatch, host)

    def _counted(
        self, microbatch: Microbatch, weights: Weights | None, host: Host | None = None
    ) -> DomainLoss:
        """Add to the ledger; the loss instead of a host's, or beside it."""
        found = counted_loss(self.backend, self.ledger, microbatch, weights, host)
        if weights is not None and self.steering and self.steering.step_multipliers is None:
            count_weighted(self.backend, self.ledger, microbatch, weights)
        return found

    def _rows(self, tap: BatchTap | None, source: Source, losses: torch.Tensor) -> Rows:
        device = losses.device
        rows = None if tap is None else tap.rows(source, device)
        groups = self.groups
        if self.steering is not None and groups.tensor_parallel is not None:
            count = groups.micro_batch_size
            length = losses.numel() * groups.cp_size // count if source.by_token else None
            return Rows.shared(
                rows,
                count,
                length,
                device,
                group=groups.tensor_parallel,
                source=groups.tensor_source,
            )
        assert rows is not None  # this rank counts, so it reads data
        return rows


def loss_mask(loss_func: Callable[..., Any]) -> torch.Tensor:
    """The mask that the host's forward step bound into its loss partial."""
    args = getattr(loss_func, "args", ())
    mask = args[0] if args else getattr(loss_func, "keywords", {}).get("loss_mask")
    if not isinstance(mask, torch.Tensor):
        raise IntegrityError(
            "the script's forward step must return (output, partial(loss_func, loss_mask, …)), as "
            f"Megatron's pretrain_gpt.py does; it returned {loss_func!r}"
        )
    return mask
