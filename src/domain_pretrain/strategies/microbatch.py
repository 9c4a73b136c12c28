"""Multipliers of one microbatch, on the device: its loss is Σ w_d·L_d of this very microbatch.

Everything is elementwise or a reduction over D values: no value is read back by the host, so this
runs between the forward and the backward pass without a synchronisation, also inside a CUDA graph
(then with the temperature as a tensor).
"""

from __future__ import annotations

import torch

from domain_pretrain.strategies.multipliers import Objective
from domain_pretrain.strategies.shapes import Shape, linupper, normalised


@torch.no_grad()
def microbatch_multipliers(
    loss_sum: torch.Tensor,
    tokens: torch.Tensor,
    *,
    shape: Shape = linupper,
    temperature: float | torch.Tensor = 1.0,
    objective: Objective = "domain_mean",
    pinned: torch.Tensor | None = None,
) -> torch.Tensor:
    """``w = softmax(shape(h) / r)`` over the domains present; m_d = w_d·N/N_d for ``domain_mean``.

    With ``domain_mean`` the mean of m·loss over the N tokens *is* Σ w_d·L_d. A microbatch with a
    single domain has multiplier exactly 1, not a constant softmax. There is no warm-up, clip or
    uniform part here: nothing but the formula.

    Args:
        loss_sum: ``[D]`` floating (float64 where the device has it), Σ mask·loss over the *global*
            microbatch: summed over context parallel, then data parallel ranks, before this call;
            the same on every rank.
        tokens: ``[D]`` of the same dtype, Σ mask; 0 where absent.
        shape: of shapes.py.
        temperature: r; a 0-d tensor where it has to change under a CUDA graph.
        objective: see ``multipliers.MultiplierOptions``.
        pinned: bool ``[D]``: domains left out.

    Returns:
        ``[D]``, without gradient, Σ share·m = 1; 1 for a domain that is left out. A domain whose
        sum is not finite is left out too.
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
    return torch.where(free & ~equal, tilt * scale, 1)


def sample_multipliers(
    loss_sum: torch.Tensor,
    tokens: torch.Tensor,
    *,
    shape: Shape = linupper,
    temperature: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """``w = softmax(shape(h) / r)`` over all N samples of one forward pass; loss Σ w_i·l_i.

    Unit ``sample``: l_i is the sample's own mean, so that its multiplier is m_i = w_i·(tokens of
    all)/(its tokens), N·w_i where all samples have the same length. A sample is to this method what
    a domain is to :func:`microbatch_multipliers`, and that is all the code there is.

    Source: Sow et al., ICLR 2025 (arXiv:2502.06733). Uniform for the first 1,000 of 20,000 steps
    there, then r 1.0 for small models, 0.4 for large ones. Not taken over from its code: its
    "uniform" is a softmax of h; gathered weights are indexed by the *local* rank, wrong beyond one
    node; a default r of 100, which switches the method off.

    Args:
        loss_sum: ``[N]`` floating, Σ mask·loss of each sample, complete over context parallel
            ranks; the samples of all data parallel ranks, in the order of their *global* rank.
        tokens: ``[N]`` of the same dtype, Σ mask of each sample.
        shape: of shapes.py.
        temperature: r.

    Returns:
        ``[N]``, without gradient. Of b samples per rank, data parallel rank k owns rows
        k·b … (k+1)·b − 1. A sample without tokens, or with a loss that is not finite, has 1.
    """
    return microbatch_multipliers(
        loss_sum, tokens, shape=shape, temperature=temperature, objective="domain_mean"
    )
