"""Unit ``sample``: each sample is weighed by its own loss, as the ICLR 2025 paper published it."""

from __future__ import annotations

import torch

from domain_pretrain.strategies.microbatch import MicrobatchWeights, microbatch_weights
from domain_pretrain.strategies.shapes import Shape, linupper


def sample_weights(
    loss_sum: torch.Tensor,
    tokens: torch.Tensor,
    *,
    shape: Shape = linupper,
    temperature: float | torch.Tensor = 1.0,
) -> MicrobatchWeights:
    """``w = softmax(shape(h) / r)`` over all N samples of one forward pass; loss Σ w_i·l_i.

    l_i is the sample's own mean, so that its multiplier is m_i = w_i·(tokens of all)/(its tokens):
    N·w_i where all samples have the same length. A sample is to this method what a domain is to
    the microbatch scope, and that is all the code there is.

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
        ``[N]`` each. Of b samples a rank, data parallel rank k owns rows k·b … (k+1)·b − 1. A
        sample without tokens, or with a loss that is not finite, has weight 0 and multiplier 1.
    """
    return microbatch_weights(
        loss_sum, tokens, shape=shape, temperature=temperature, objective="domain_mean"
    )
