"""What a router says of its tokens, in PyTorch: how sure it is, and where it sends them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid, softplus

# Of a row, behind the choices of each expert: its tokens, and the sum of their entropies.
TOKENS, ENTROPY, MORE = -2, -1, 2
UNIT = 2**-16  # nats; a token's entropy as an integer, whose sums are the same in any order


def router_entropy(logits: torch.Tensor, score_function: str = "softmax") -> torch.Tensor:
    """Entropy of what a router gives its experts, nats, fp32 (float64 of float64): ``[tokens]``.

    The scores are taken as parts of their sum, as the load balancing loss takes them.

    Args:
        logits: ``[tokens, experts]``.
        score_function: ``softmax``, ``sigmoid`` or ``sqrtsoftplus``, as Megatron calls it.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if score_function == "sigmoid":
        logits = logsigmoid(logits)
    elif score_function == "sqrtsoftplus":
        logits = 0.5 * softplus(logits).log()
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1)


def mean_of(values: torch.Tensor, padding: torch.Tensor | None) -> torch.Tensor:
    """Mean over ``[tokens]``, without those that are padding (True)."""
    if padding is None:
        return values.mean()
    there = ~padding
    return (values * there).sum() / there.sum().clamp(min=1)


def count_rows(
    chosen: torch.Tensor, entropy: torch.Tensor, rows: int, padding: torch.Tensor | None
) -> torch.Tensor:
    """What the rows of a microbatch were given, int64 ``[rows, experts + MORE]``.

    Args:
        chosen: bool ``[tokens, experts]``, whether a token goes to an expert. The tokens of a
            sequence position lie side by side: token t belongs to row t mod rows.
        entropy: nats ``[tokens]``.
        rows: of the microbatch.
        padding: ``[tokens]``, True where there is no token; or None.
    """
    whole = torch.round(entropy.float() / UNIT).long()[:, None]
    counts = torch.cat([chosen.long(), torch.ones_like(whole), whole], dim=1)
    if padding is not None:
        counts = counts * (~padding).long()[:, None]
    return counts.view(-1, rows, counts.shape[1]).sum(dim=0)


def by_domain(rows: Sequence[torch.Tensor], ids: torch.Tensor, domains: int) -> torch.Tensor:
    """Sums by domain, int64 ``[domains + 1, experts + MORE]``; last, of ids that are no domain.

    Args:
        rows: of each microbatch, as :func:`count_rows` gives them.
        ids: integer ``[microbatches · rows]``, domain of each row.
    """
    counted = torch.cat([*rows])
    ids = ids.long()
    ids = torch.where((ids < 0) | (ids >= domains), domains, ids)
    sums = counted.new_zeros(domains + 1, counted.shape[1])
    return sums.index_add_(0, ids, counted)
