"""Weights within one microbatch, on the device: the loss is Σ w_d·L_d of this very batch.

Everything is elementwise or a reduction over D values: no value is read back by the host, so this
runs between the forward and the backward pass without a synchronisation, also inside a CUDA graph
(then with the temperature as a tensor).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from domain_pretrain.strategies.multipliers import Objective
from domain_pretrain.strategies.shapes import Shape, linupper, normalised


class MicrobatchWeights(NamedTuple):
    """Weights and multipliers of one microbatch, ``[D]`` each, without gradient.

    Attributes:
        weights: distribution over the domains that are weighed; 0 elsewhere.
        multipliers: of the per-token losses; 1 where not weighed; Σ share·m = 1.
    """

    weights: torch.Tensor
    multipliers: torch.Tensor


@torch.no_grad()
def microbatch_weights(
    loss_sum: torch.Tensor,
    tokens: torch.Tensor,
    *,
    shape: Shape = linupper,
    temperature: float | torch.Tensor = 1.0,
    objective: Objective = "domain_mean",
    pinned: torch.Tensor | None = None,
) -> MicrobatchWeights:
    """``w = softmax(shape(h) / r)`` over the domains present; m_d = w_d·N/N_d for ``domain_mean``.

    With ``domain_mean`` the mean of m·loss over the N tokens *is* Σ w_d·L_d. A microbatch with a
    single domain has multiplier exactly 1, not a constant softmax. There is no warm-up, clip or
    blend here: nothing but the formula.

    Args:
        loss_sum: ``[D]`` floating (float64 where the device has it), Σ mask·loss over the *global*
            microbatch: summed over context parallel, then data parallel ranks, before this call;
            the same on every rank.
        tokens: ``[D]`` of the same dtype, Σ mask; 0 where absent.
        shape: of shapes.py.
        temperature: r; a 0-d tensor where it has to change under a CUDA graph.
        objective: see ``multipliers.MultiplierOptions``.
        pinned: bool ``[D]``: domains left out, with multiplier 1.

    A domain whose sum is not finite is left out too.
    """
    free = (tokens > 0) & torch.isfinite(loss_sum)
    if pinned is not None:
        free = free & ~pinned
    loss = torch.where(free, loss_sum / torch.where(free, tokens, 1), 0)
    lowest = torch.where(free, loss, torch.inf).amin()
    highest = torch.where(free, loss, -torch.inf).amax()
    score = shape(normalised(loss, lowest, highest)) / temperature
    weights = torch.softmax(score.masked_fill(~free, -torch.inf), dim=0)
    # Without any free domain the softmax is 0/0; where() takes the other side.
    weights = torch.where(free, weights, 0)

    share = tokens / tokens.sum()
    tilt = weights / torch.where(free, share, 1) if objective == "domain_mean" else weights
    scale = torch.where(free, share, 0).sum() / (share * tilt).sum()
    # Equal tilts change nothing: exactly one, so that rounding cannot move a trajectory.
    equal = torch.where(free, tilt, torch.inf).amin() == torch.where(free, tilt, -torch.inf).amax()
    return MicrobatchWeights(weights, torch.where(free & ~equal, tilt * scale, 1))
