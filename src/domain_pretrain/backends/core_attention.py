"""Megatron's own core attention, extended to context parallelism and packed sequences.

Megatron leaves both to Transformer Engine. Its ``DotProductAttention`` is extended in place: every
layer specification of every version (GPT, MoE, MTP, the PyPI wheel's model builder) uses this
class, while ``--spec`` would replace the user's whole layer. With neither context parallelism nor
packing, Megatron's code runs. ``--cp-comm-type a2a`` chooses Ulysses, anything else all-gather.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from domain_pretrain.adapt.muon import asks_for_logits
from domain_pretrain.backends import attention_logits
from domain_pretrain.backends.context_parallel import (
    allgather_attention,
    check_heads,
    gather_sequence,
    ulysses_attention,
)
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.zigzag import zigzag_order

Function = Callable[..., Any]


def init_with_cp(init: Function) -> Function:
    """``DotProductAttention.__init__``, told of no context parallelism."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        # All that keeps the constructor from context parallelism is an assertion on this number.
        alone = copy(config)
        alone.context_parallel_size = 1
        init(self, alone, *args, **kwargs)
        self.config = config
        self.cp_ulysses = config.context_parallel_size > 1 and kwargs.get("cp_comm_type") == "a2a"
        if self.cp_ulysses:
            check_heads(self.num_attention_heads_per_partition, config.context_parallel_size)
        if asks_for_logits(config):
            attention_logits.begin(self)

    return __init__


def forward_with_cp(forward: Function) -> Function:
    """``DotProductAttention.forward``, or ours for context parallelism or packed sequences."""

    def forward_or_ours(
        self: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> Tensor:
        if self.config.context_parallel_size == 1 and packed_seq_params is None:
            return forward(
                self, query, key, value, attention_mask, attn_mask_type, attention_bias, None
            )
        return _forward(self, query, key, value, attention_mask, packed_seq_params)

    return forward_or_ours


def _forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_seq_params: Any,
) -> Tensor:
    """``DotProductAttention.forward`` for context parallelism or packed sequences.

    Args:
        module: the ``DotProductAttention``.
        query, key, value: ``[l, b, h, d]`` of this rank, or ``[l, h, d]`` where packed.
        attention_mask: bool ``[b, 1, l, s]``, True where blocked; None means causal.
        packed_seq_params: Megatron's; its lengths are those of the whole sequence.
    """
    from megatron.core.parallel_state import get_context_parallel_group

    if getattr(module, "softmax_offset", None) is not None or getattr(
        module.config, "window_size", None
    ):
        raise UnsupportedError(
            "the CPU backend has no sliding window or softmax offset under context parallelism "
            "or packed sequences: drop --window-size and --softmax-type"
        )
    group = get_context_parallel_group()
    documents = None
    if packed_seq_params is not None:
        query, key, value = (x.unsqueeze(1) for x in (query, key, value))
        padded = packed_seq_params.cu_seqlens_q_padded
        documents = packed_seq_params.cu_seqlens_q if padded is None else padded
        attention_mask = None  # the documents' lengths say it all

    causal = "causal" in module.attn_mask_type.name
    blocked = block_mask(query.size(0) * group.size(), causal=causal, documents=documents)
    if not module.cp_ulysses:
        blocked = zigzag_order(blocked, group.size())[group.rank()]
    elif attention_mask is not None:
        attention_mask = gather_sequence(attention_mask.movedim(2, 0), group).movedim(0, 2)
    blocked = blocked[None, None]
    if attention_mask is not None:
        blocked = blocked | attention_mask

    note = None
    if asks_for_logits(module.config):
        first = first_head(module, group, ulysses=module.cp_ulysses)
        note = partial(attention_logits.keep, module, first=first)

    attend = ulysses_attention if module.cp_ulysses else allgather_attention
    out = attend(
        query,
        key,
        value,
        blocked,
        group,
        scale=module.softmax_scale * (module.scale_mask_softmax.scale or 1.0),
        dropout=module.attention_dropout.p if module.training else 0.0,
        note=note,
    ).flatten(2)
    return out.squeeze(1) if packed_seq_params is not None else out


def first_head(module: Any, group: Any, *, ulysses: bool) -> int:
    """The first head that this rank attends with: of its share with Ulysses, else of all."""
    share = module.num_attention_heads_per_partition // group.size()
    return int(group.rank() * share) if ulysses else 0


def block_mask(length: int, *, causal: bool, documents: Tensor | None) -> Tensor:
    """What no query may see, bool ``[length, length]``: later positions and other documents.

    Args:
        length: s.
        causal: whether later positions are blocked.
        documents: cumulative lengths ``[n + 1]``, from 0; None where all is one document.
    """
    position = torch.arange(length)
    blocked = torch.zeros(length, length, dtype=torch.bool)
    if causal:
        blocked |= position[:, None] < position
    if documents is not None:
        document = torch.searchsorted(documents[1:].to(position), position, right=True)
        blocked |= document[:, None] != document
    return blocked
