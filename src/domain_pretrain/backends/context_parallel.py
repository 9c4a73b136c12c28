"""Attention over a sequence that is divided among context parallel ranks, in plain PyTorch.

Two ways to see the whole sequence: every rank gets all keys and values (``allgather``), or all
positions of its share of the heads (``ulysses``, arXiv:2309.14509). Both are one differentiable
all-to-all and a matter of order (:mod:`domain_pretrain.zigzag`).

Shapes: s positions of the whole sequence, l = s / cp of this rank, b batch, h query heads,
g key/value heads (h is a multiple of g), d and e head sizes of query/key and of value.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from domain_pretrain.backends.attention_logits import Note, largest
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.zigzag import natural_order, zigzag_order

Group = dist.ProcessGroup


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocked: Tensor,
    *,
    scale: float,
    dropout: float = 0.0,
    note: Note | None = None,
) -> Tensor:
    """Scaled dot-product attention ``[q, b, h, e]`` of one rank.

    Args:
        query, key, value: ``[q, b, h, d]``, ``[k, b, g, d]``, ``[k, b, g, e]``.
        blocked: bool ``[1 or b, 1, q, k]``, True where a query must not see a key.
        scale: factor of the scores.
        dropout: probability of dropping an attention weight.
        note: takes the heads' largest logits; None: nobody asks for them.
    """
    query, key, value = (x.permute(1, 2, 0, 3) for x in (query, key, value))
    repeats = query.size(1) // key.size(1)
    key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if note is not None:
        note(largest(query, key, blocked, scale))
    out = F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=~blocked,
        dropout_p=dropout,
        scale=scale,
    )
    return out.permute(2, 0, 1, 3)


def allgather_attention(
    query: Tensor, key: Tensor, value: Tensor, blocked: Tensor, group: Group, **options: Any
) -> Tensor:
    """Attention of this rank's queries ``[l, b, h, d]`` to the keys of all ranks ``[l, b, h, e]``.

    Args:
        query, key, value: this rank's ``[l, b, ...]``.
        blocked: bool ``[1 or b, 1, l, s]``: this rank's rows.
        group: the CP group; one exchange each of keys and values, and of their gradients.
        options: ``scale``, ``dropout`` and ``note`` of :func:`attention`.
    """
    return attention(
        query, gather_sequence(key, group), gather_sequence(value, group), blocked, **options
    )


def ulysses_attention(
    query: Tensor, key: Tensor, value: Tensor, blocked: Tensor, group: Group, **options: Any
) -> Tensor:
    """Attention of ``h / cp`` heads over the whole sequence, for this rank's rows ``[l, b, h, e]``.

    Args:
        query, key, value: this rank's ``[l, b, ...]``.
        blocked: bool ``[1 or b, 1, s, s]``: all rows.
        group: the CP group; one exchange each of queries, keys, values and the result, and of
            their gradients.
        options: ``scale``, ``dropout`` and ``note`` of :func:`attention`.

    Raises:
        UnsupportedError: the heads of this TP rank cannot be divided among the CP ranks.
    """
    cp, heads = group.size(), query.size(2)
    check_heads(heads, cp)
    if key.size(2) % cp:
        key, value = (x.repeat_interleave(heads // x.size(2), dim=2) for x in (key, value))
    query, key, value = (_heads_to_sequence(x, group) for x in (query, key, value))
    return _sequence_to_heads(attention(query, key, value, blocked, **options), group)


def check_heads(heads: int, cp: int) -> None:
    """Raise UnsupportedError where a TP rank's ``heads`` cannot be divided among cp ranks."""
    if heads % cp:
        raise UnsupportedError(
            f"--cp-comm-type a2a divides the {heads} attention heads of a tensor-parallel rank "
            f"among {cp} context parallel ranks: {heads} is not a multiple of {cp}; "
            "use --cp-comm-type all_gather"
        )


def gather_sequence(x: Tensor, group: Group) -> Tensor:
    """``[l, ...]`` of every rank to the whole ``[s, ...]``, in the order of positions."""
    return natural_order(exchange(x.expand(group.size(), *x.shape), group))


def exchange(x: Tensor, group: Group) -> Tensor:
    """Block i of rank j's ``[cp, ...]`` becomes block j of rank i's; differentiable."""
    return _Exchange.apply(x, group)


class _Exchange(torch.autograd.Function):
    """All-to-all, which is its own transpose: the gradient takes the same way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        x = x.contiguous()
        out = torch.empty_like(x)
        dist.all_to_all_single(out, x, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return exchange(grads[0], ctx.group), None


def _heads_to_sequence(x: Tensor, group: Group) -> Tensor:
    """``[l, b, h, d]`` to ``[s, b, h / cp, d]``."""
    return natural_order(exchange(x.unflatten(2, (group.size(), -1)).movedim(2, 0), group))


def _sequence_to_heads(x: Tensor, group: Group) -> Tensor:
    """``[s, b, h / cp, d]`` to ``[l, b, h, d]``."""
    return exchange(zigzag_order(x, group.size()), group).movedim(0, 2).flatten(2, 3)
