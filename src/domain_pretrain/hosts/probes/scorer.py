"""Log-probabilities and predictions of rows of tokens, by the model that Megatron holds.

The host's schedule runs forward on batches of ours, through the script's own forward step, so every
layout that it can train, it can ask. All ranks call with the same rows, together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from domain_pretrain.errors import IntegrityError
from domain_pretrain.evaluate.model import Row
from domain_pretrain.flow.forward import loss_mask


class Scorer:
    """One model, for one evaluation.

    Args:
        args: the host's.
        forward_step, model, config: what the host evaluates with.
        reads: of each model chunk of this rank, whether the host reads data for it here.
        end: a token to fill rows up with.
        vocabulary: tokens that mean something; the rows above pad the embedding.
        device: of the model.
    """

    def __init__(
        self,
        args: Any,
        forward_step: Callable[..., Any],
        model: Sequence[Any],
        config: Any,
        *,
        reads: Sequence[bool],
        end: int,
        vocabulary: int,
        device: torch.device,
    ) -> None:
        self._args, self._forward_step = args, forward_step
        self._model, self._config = model, config
        self._reads = reads
        self._end = end
        self._vocabulary = vocabulary
        self._device = device
        self._micro = int(getattr(args, "eval_micro_batch_size", args.micro_batch_size))

    def log_likelihoods(self, rows: Sequence[Row]) -> list[float]:
        """``Σ log p(token i | tokens before it)`` over ``i ≥ first`` of each row, nats.

        Added up in float64.

        Args:
            rows: of at most ``seq_length + 1`` tokens.

        Returns:
            Of each row, on the last pipeline stage; nothing elsewhere.
        """

        def step(data_iterator: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            output, loss = self._forward_step(data_iterator, model, *args, **kwargs)
            # The schedule calls this on the last stage alone: others may have no mask.
            return output, lambda losses, **how: _row_sums(losses, loss_mask(loss))

        share = self._share(rows)
        chunks = [
            (one for one, _ in self._batches(share)) if read else None for read in self._reads
        ]
        found = self._gather(self._run(step, share, chunks), len(rows))
        return [-math.fsum(parts) for parts in found]

    def predict(self, rows: Sequence[Row]) -> list[list[int]]:
        """The likeliest token at each position from ``first`` to one behind the row's last.

        Not with context parallelism, which would cut the rows.

        Args:
            rows: of at most ``seq_length`` tokens.

        Returns:
            As :meth:`log_likelihoods` has it.
        """

        def step(data_iterator: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            batch, asked = next(data_iterator)
            given = (batch[key] for key in ("tokens", "position_ids"))
            mask = batch.get("attention_mask")
            output = model(
                *(one.to(self._device) for one in given),
                None if mask is None else mask.to(self._device),
            )
            return output, lambda logits, **how: self._likeliest(logits, asked)

        share = self._share(rows)
        chunks = [self._batches(share) for _ in self._model]  # every stage has all rows
        found = self._gather(self._run(step, share, chunks), len(rows))
        return [tokens for (tokens,) in found]

    def _run(
        self,
        step: Callable[..., Any],
        share: Sequence[Row | None],
        chunks: Sequence[Iterator[Any] | None],
    ) -> list[Any]:
        """What ``step`` says of each of this rank's rows; on the last stage."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        args = self._args
        with torch.no_grad(), _evaluating(self._model), _untimed(self._config):
            # Not the one in the host's loop, which counts for the domains what passes there.
            found = get_forward_backward_func()(
                forward_step_func=step,
                data_iterator=chunks if len(chunks) > 1 else chunks[0],
                model=self._model,
                num_microbatches=len(share) // self._micro,
                seq_length=args.seq_length,
                micro_batch_size=self._micro,
                decoder_seq_length=args.decoder_seq_length,
                forward_only=True,
                collect_non_loss_data=True,
            )
        return [one for microbatch in found for one in microbatch]

    def _share(self, rows: Sequence[Row]) -> list[Row | None]:
        """Every so-many-th row, filled up: as many microbatches on each data-parallel rank."""
        from megatron.core import parallel_state as mpu

        replicas, replica = mpu.get_data_parallel_world_size(), mpu.get_data_parallel_rank()
        at_once = 1
        if len(self._model) > 1:  # interleaved stages take microbatches by groups
            stages = mpu.get_pipeline_model_parallel_world_size()
            group = getattr(self._config, "microbatch_group_size_per_vp_stage", None)
            at_once = math.lcm(stages, group or stages)
        each = -(-len(rows) // (self._micro * replicas * at_once)) * self._micro * at_once
        share: list[Row | None] = list(rows[replica::replicas])
        return share + [None] * (each - len(share))

    def _batches(
        self, share: Sequence[Row | None]
    ) -> Iterator[tuple[dict[str, torch.Tensor], Sequence[Row | None]]]:
        """As the host's data loader gives them, each with its rows."""
        for start in range(0, len(share), self._micro):
            rows = share[start : start + self._micro]
            yield torch.utils.data.default_collate([self._sample(row) for row in rows]), rows

    def _sample(self, row: Row | None) -> dict[str, torch.Tensor]:
        """A row as a sample of Megatron's data set; None asks about nothing."""
        from megatron.core.datasets.gpt_dataset import _get_ltor_masks_and_position_ids

        args, length = self._args, self._args.seq_length
        tokens = torch.full((length + 1,), self._end)
        scored = torch.zeros(length)
        if row is not None:
            tokens[: len(row.tokens)] = torch.as_tensor(row.tokens)
            scored[row.first - 1 : len(row.tokens) - 1] = 1
        mask, _, positions = _get_ltor_masks_and_position_ids(
            tokens[:-1],
            self._end,
            args.reset_position_ids,
            args.reset_attention_mask,
            False,
            args.create_attention_mask_in_dataloader,
        )
        return {
            "tokens": tokens[:-1],
            "labels": tokens[1:].contiguous(),
            "loss_mask": scored,
            "position_ids": positions,
            **({} if mask is None else {"attention_mask": mask}),
        }

    def _gather(self, own: list[Any], count: int) -> list[list[Any]]:
        """By row, what each rank that saw a part of it found; on the last stage.

        One all-gather of objects over the dp_cp group, some bytes a row, a call of the model.
        """
        from megatron.core import parallel_state as mpu

        if not mpu.is_pipeline_last_stage(ignore_virtual=True):
            return []
        group = mpu.get_data_parallel_group(with_context_parallel=True)
        boxes: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(boxes, (mpu.get_data_parallel_rank(), own), group=group)
        replicas = mpu.get_data_parallel_world_size()
        return [
            [found[row // replicas] for replica, found in boxes if replica == row % replicas]
            for row in range(count)
        ]

    def _likeliest(self, logits: torch.Tensor, rows: Sequence[Row | None]) -> list[list[int]]:
        """Of each row, from ``first`` on.

        Args:
            logits: ``[b, s, V / tp]`` of this tensor-parallel rank's part of the vocabulary.
            rows: of the batch.
        """
        spans = [(0, 0) if row is None else (row.first - 1, len(row.tokens)) for row in rows]
        asked = torch.cat([one[start:end] for one, (start, end) in zip(logits, spans, strict=True)])
        best = iter(self._best(asked))
        return [[next(best) for _ in range(start, end)] for start, end in spans]

    def _best(self, logits: torch.Tensor) -> list[int]:
        """Of each of ``[n, V / tp]``, the token with the highest; of equal ones the lowest.

        One all-gather over the TP group, 8 bytes a position, a microbatch.
        """
        from megatron.core import parallel_state as mpu

        first = mpu.get_tensor_model_parallel_rank() * logits.shape[-1]
        mine = logits[:, : max(0, self._vocabulary - first)]
        # Of equal ones, max gives the first. An index is exact in fp32 up to 16 million.
        found = logits.new_full((2, len(logits)), -math.inf, dtype=torch.float32)
        if mine.numel():
            highest, place = mine.float().max(-1)
            found = torch.stack([highest, (place + first).float()])
        parts = [torch.empty_like(found) for _ in range(mpu.get_tensor_model_parallel_world_size())]
        dist.all_gather(parts, found, group=mpu.get_tensor_model_parallel_group())
        every = torch.stack(parts)  # [tp, 2, n], the vocabulary in its order
        rank = every[:, 0].max(0).indices
        return [int(token) for token in every[:, 1].gather(0, rank[None])[0].tolist()]


def _row_sums(losses: Any, mask: torch.Tensor) -> list[float]:
    """``Σ mask·loss`` of each row, in float64: where the tokens are many, fp32 has no 1e-4 left.

    Args:
        losses: ``[b, s / cp]``, nats.
        mask: of the same shape.

    Raises:
        IntegrityError: the model returned something else.
    """
    if not isinstance(losses, torch.Tensor) or losses.numel() != mask.numel():
        shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
        raise IntegrityError(
            f"evaluate.probes: the model returned {shape} for a loss mask of {tuple(mask.shape)}: "
            "probes need one loss per token"
        )
    # On the host: not every device adds in float64.
    weighted = (losses.float().reshape(mask.shape) * mask.float()).cpu()
    sums: list[float] = weighted.sum(1, dtype=torch.float64).tolist()
    return sums


@contextmanager
def _evaluating(model: Sequence[Any]) -> Iterator[None]:
    """Without dropout; afterwards, each module is in the mode that it was in."""
    modes = [(module, module.training) for chunk in model for module in chunk.modules()]
    for chunk in model:
        chunk.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _untimed(config: Any) -> Iterator[None]:
    """The host's timers are of the training; its own evaluations do the same."""
    timers, config.timers = config.timers, None
    try:
        yield
    finally:
        config.timers = timers
