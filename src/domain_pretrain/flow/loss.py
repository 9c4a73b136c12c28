"""Per-token losses of one microbatch → domain sums."""

from __future__ import annotations

import torch

from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.ledger import Groups, Ledger
from domain_pretrain.flow.tap import Rows
from domain_pretrain.kernels.domain_reduce import count_samples, domain_reduce


def count_microbatch(
    ledger: Ledger, losses: torch.Tensor, mask: torch.Tensor, rows: Rows, groups: Groups
) -> None:
    """Add one microbatch's losses to the ledger. Valid on the ranks that count.

    Args:
        losses: this CP rank's per-token losses, as many as ``mask``.
        mask: ``[b, s / cp]``, or ``[1, b·s / cp]`` where the host flattened packed rows.
        rows: the microbatch's whole samples, ``b`` of them.
    """
    if losses.numel() != mask.numel():
        raise IntegrityError(
            f"the model returned {tuple(losses.shape)} losses for a loss mask of "
            f"{tuple(mask.shape)}: the channel loss needs one loss per token"
        )
    mask = mask.reshape(mask.shape[0], -1) if mask.dim() > 1 else mask.reshape(1, -1)
    losses = losses.detach().reshape(mask.shape)
    domains, inverse = rows.domains, 1.0 / rows.tokens.clamp(min=1.0)
    if domains.numel() != mask.shape[0]:
        if mask.shape[0] != 1:
            raise IntegrityError(
                f"{domains.numel()} samples were read for a loss mask of {tuple(mask.shape)}"
            )
        row = row_of_token(domains.numel(), mask.numel(), groups, mask.device)[None]
        domains, inverse = domains[row], inverse[row]
    domain_reduce(ledger.domains, losses, mask, domains, inverse)
    if groups.cp_rank == 0:
        count_samples(ledger.domains, rows.domains, rows.tokens)


def row_of_token(rows: int, local: int, groups: Groups, device: torch.device) -> torch.Tensor:
    """The sample of each of this CP rank's ``local`` tokens, where samples were concatenated.

    The host joins the rows first and cuts for context parallelism afterwards: rank r holds chunks
    r and 2·cp − 1 − r of 2·cp (zigzag, so that causal attention is balanced).
    """
    total = local * groups.cp_size
    row = torch.arange(total, device=device) // (total // rows)
    if groups.cp_size == 1:
        return row
    chunks = row.view(2 * groups.cp_size, -1)
    return torch.cat([chunks[groups.cp_rank], chunks[2 * groups.cp_size - 1 - groups.cp_rank]])
