"""One microbatch of the built-in GPT entry, as this rank's model chunk needs it.

Megatron's own helpers move the batch over TP and cut it for CP; what they are called with differs
between its versions, and that is all this file knows.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import cache
from inspect import signature
from typing import Any

import megatron.core.utils as core_utils
import megatron.training.training as training
from megatron.core import parallel_state as mpu
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.training.utils import is_first_or_last_pipeline_stage
from torch import Tensor

Batch = dict[str, Any]  # tensors; None for what this stage does not read

# What the model and its attention read. Anything else in a row, such as ``dataset_id``, is dropped:
# the CP slicer would try to cut it along a sequence dimension that it does not have.
KEYS = (
    "tokens",
    "labels",
    "loss_mask",
    "attention_mask",
    "position_ids",
    "cu_seqlens",
    "cu_seqlens_padded",
    "max_seqlen",
)
EMPTY: Batch = dict.fromkeys(KEYS)


def is_packed(args: Namespace) -> bool:
    """Whether rows carry ``cu_seqlens``: several documents, each attending to itself only."""
    return args.sft or getattr(args, "dataloader_inter_document_masking", False)


def holds_mtp(config: Any, vp_stage: int | None) -> bool:
    """Whether this model chunk holds multi-token prediction layers: they embed and have a loss."""
    return call_known(
        mtp_on_this_rank,
        config=config,  # until 0.17
        layout=config.pipeline_model_parallel_layout,
        mtp_num_layers=config.mtp_num_layers,
        ignore_virtual=False,
        vp_stage=vp_stage,
    )


def get_batch(
    data_iterator: Iterator[dict[str, Tensor]] | None,
    args: Namespace,
    config: Any,
    vp_stage: int | None,
) -> tuple[Batch, PackedSeqParams | None]:
    """Read the next microbatch and bring it to this rank.

    Args:
        data_iterator: yields ``{"tokens": int64 [b, s], ...}`` on TP rank 0; None elsewhere.
        args: Megatron's arguments.
        config: the model's ``TransformerConfig``.
        vp_stage: index of the model chunk; None without virtual pipeline stages.

    Returns:
        The batch, ``[b, s / cp]`` per tensor (packed: ``[1, b·s / cp]``), None for what this stage
        does not read; and the document boundaries where rows are packed, on every stage.
    """
    mtp = holds_mtp(config, vp_stage)
    reads_tokens = mtp or is_first_or_last_pipeline_stage(vp_stage)
    packed = is_packed(args)
    if not reads_tokens and not packed:
        return EMPTY, None

    batch = _over_tensor_parallel(data_iterator, args, mtp_on_this_rank=mtp, packed=packed)
    packed_seq_params = _packed_seq_params(batch, args)
    if not reads_tokens:
        return EMPTY, packed_seq_params
    batch = call_known(
        core_utils.get_batch_on_this_cp_rank,
        batch,
        is_hybrid_cp=False,
        cp_group=mpu.get_context_parallel_group(),
        # SFT pads each document to a multiple of 2·cp; plain documents are of any length, so the
        # row as a whole is cut.
        use_per_sequence_balancing=packed and not args.sft,
    )
    return batch, packed_seq_params


def call_known(function: Callable[..., Any], *positional: Any, **keywords: Any) -> Any:
    """Call ``function`` with those of ``keywords`` that this version of it has."""
    known = _parameters(function)
    return function(*positional, **{name: keywords[name] for name in keywords if name in known})


@cache
def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    return frozenset(signature(function).parameters)


def _over_tensor_parallel(
    data_iterator: Iterator[dict[str, Tensor]] | None,
    args: Namespace,
    *,
    mtp_on_this_rank: bool,
    packed: bool,
) -> Batch:
    """Read on TP rank 0 and broadcast (TP group, the microbatch's tensors, once per microbatch)."""
    if not hasattr(core_utils, "get_batch_on_this_tp_rank"):
        # Until 0.17 the helper reads the iterator, the arguments and the groups itself.
        from megatron.training.utils import get_batch_on_this_tp_rank

        return get_batch_on_this_tp_rank(data_iterator, mtp_on_this_rank=mtp_on_this_rank)

    batch: Batch = {}
    if mpu.get_tensor_model_parallel_rank() == 0:
        assert data_iterator is not None
        row = next(data_iterator)
        # A new dict: the rerun machine may hand out the old one again.
        batch = {
            key: None if row.get(key) is None else row[key].cuda(non_blocking=True) for key in KEYS
        }
    batch = call_known(
        core_utils.get_batch_on_this_tp_rank,
        batch,
        is_sft=packed,  # 0.18
        has_cu_seqlens=packed,  # since 0.19
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=mtp_on_this_rank,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(),
    )
    if hasattr(core_utils, "flatten_batch_for_packed_sequences"):
        batch = core_utils.flatten_batch_for_packed_sequences(batch)
    return batch


def _packed_seq_params(batch: Batch, args: Namespace) -> PackedSeqParams | None:
    """Document boundaries for the attention; None where rows are not packed."""
    if batch["cu_seqlens"] is None:
        return None
    cu_seqlens = batch["cu_seqlens"].squeeze(0)
    padded = batch.get("cu_seqlens_padded")
    padded = None if padded is None else padded.squeeze(0)
    if hasattr(training, "update_seqlen_stats_from_cu_seqlens"):
        # Megatron's FLOP count is of real tokens, so it takes the lengths before padding.
        training.update_seqlen_stats_from_cu_seqlens(cu_seqlens)
    # Attention strides over the rows as they lie in memory: padding included.
    bounds = cu_seqlens if padded is None else padded
    longest = int(batch["max_seqlen"].item())
    return call_known(
        PackedSeqParams,
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        cu_seqlens_q_padded=padded,
        cu_seqlens_kv_padded=padded,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
        tokens_per_sample=args.seq_length,
    )
