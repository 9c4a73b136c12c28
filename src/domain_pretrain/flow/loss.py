"""Per-token losses of one microbatch → domain sums, and the loss that is differentiated."""

from __future__ import annotations

import torch

from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.flow.microbatch import Microbatch
from domain_pretrain.kernels.domain_reduce import count_samples, domain_reduce


def count_microbatch(
    ledger: Ledger, microbatch: Microbatch, multipliers: torch.Tensor | None = None
) -> None:
    """Add one microbatch to the ledger. On the ranks that count.

    Args:
        ledger: with two layers where there are multipliers.
        microbatch: of this rank.
        multipliers: fp32 ``[b]``, one a sample; None where nothing reweights.
    """
    losses, mask, ids, inverse = microbatch.arguments()
    domain_reduce(ledger.sums[0], losses, mask, ids, inverse)
    if microbatch.groups.cp_rank == 0:  # all context parallel ranks hold the same samples
        count_samples(ledger.sums[0], microbatch.rows.domains, microbatch.rows.tokens)
    if multipliers is not None:
        mask = mask.float() * microbatch.per_token(multipliers)
        domain_reduce(ledger.sums[1], losses, mask, ids, inverse)


def weighted_loss(microbatch: Microbatch, multipliers: torch.Tensor | None) -> torch.Tensor:
    """``Σ m·mask·loss``: a fresh fp32 scalar that takes the place of the host's loss sum.

    Token counts and reports stay the host's. With multipliers of exactly 1 both the value and the
    gradient have the bits of the host's own ``sum(losses.float() * mask.float())``.

    Args:
        microbatch: with losses that carry the gradient.
        multipliers: fp32 ``[b]``, one a sample; None: all one.
    """
    mask = microbatch.mask.float()
    if multipliers is not None:
        mask = mask * microbatch.per_token(multipliers)
    return torch.sum(microbatch.losses.float().reshape(-1) * mask.reshape(-1))
