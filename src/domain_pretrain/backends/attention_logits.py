"""The largest attention logit of every head, as Transformer Engine's attention gives them.

``--qk-clip`` and ``--log-max-attention-logit`` read ``current_max_attn_logits`` of every core
attention after the optimizer's step, take the largest over the data and context parallel ranks, and
set it back to None. Only Transformer Engine's attention has it; here is the same for the CPU's, so
that MuonClip runs without a GPU. A logit is q·k times the scale, of pairs that are not masked.

Evaluations are left out: they would move the weights' clip, and a run that resumes behind one would
clip otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Note = Callable[[Tensor], None]


def largest(query: Tensor, key: Tensor, blocked: Tensor, scale: float) -> Tensor:
    """Of every head, float32 ``[h]``; what has no pair has -inf.

    Args:
        query, key: ``[b, h, q, d]``, ``[b, h, k, d]``.
        blocked: bool ``[1 or b, 1, q, k]``.
        scale: factor of the scores.
    """
    scores = query.detach().float() @ key.detach().float().transpose(2, 3) * scale
    return scores.masked_fill(blocked, -torch.inf).amax((0, 2, 3))


def keep(module: Any, logits: Tensor, first: int = 0) -> None:
    """The largest since the host last took them.

    Args:
        module: the core attention; it has :func:`begin`'s attribute.
        logits: float32, of consecutive heads.
        first: the first of them, among those of this tensor-parallel rank.
    """
    if not module.training:
        return
    heads = logits.new_full((module.num_attention_heads_per_partition,), -torch.inf)
    heads[first : first + len(logits)] = logits
    before = module.current_max_attn_logits
    module.current_max_attn_logits = heads if before is None else torch.maximum(before, heads)


def begin(module: Any) -> None:
    """Make a new ``DotProductAttention`` keep those of its own forward."""
    module.current_max_attn_logits = None
    softmax = module.scale_mask_softmax
    mask = softmax.mask_func

    def masked(scores: Tensor, blocked: Tensor) -> Tensor:
        # Scaled by now, and of the masked ones nothing is left but a number far below the others.
        found: Tensor = mask(scores, blocked)
        keep(module, found.detach().amax((0, 2, 3)).float())
        return found

    softmax.mask_func = masked
