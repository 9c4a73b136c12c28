"""Per-domain sums in plain torch: the oracle of every other backend, and the CPU and NPU path."""

from __future__ import annotations

import torch

from domain_pretrain.stats import SCALE, Column

# |mask·loss| at or above this is counted as non-finite: no cross entropy is that large, and int64
# fixed point must not overflow.
LIMIT = 2.0**20


def domain_reduce(
    accumulator: torch.Tensor,
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    inverse_row_tokens: torch.Tensor,
) -> None:
    """Add the sums of one microbatch to ``accumulator``, in place, without a host sync.

    Fixed point makes the sums associative: any split over microbatches, ranks or blocks gives the
    same bits. fp32 terms with magnitude >= 0.5 convert without loss, smaller ones to 2^-25.

    Args:
        accumulator: int64 ``[D + 1, len(Column)]``; row D takes tokens with an id outside [0, D).
        losses: ``[b, s]`` per-token losses in nats; computed in fp32.
        mask: ``[b, s]`` loss mask; may be fractional. A masked token counts nowhere, unless its
            loss is not finite (0·NaN is NaN for the host, too).
        ids: integer ``[b]`` (one domain a row) or ``[b, s]``.
        inverse_row_tokens: ``[b]`` or ``[b, s]``: 1 / (loss tokens of the token's whole sample,
            before context parallelism cut it), for the sample average.

    The sample count does not depend on losses: see :func:`count_samples`.
    """
    b, s = losses.shape
    losses, mask = losses.detach().float(), mask.detach().float()
    x = losses * mask
    finite = (x.abs() < LIMIT) & torch.isfinite(losses)
    x = torch.where(finite, x, 0.0)
    domains = accumulator.shape[0] - 1
    rows = (ids if ids.dim() == 2 else ids[:, None]).to(torch.int64)
    rows = torch.where((rows >= 0) & (rows < domains), rows, domains)
    if inverse_row_tokens.dim() == 1:
        inverse_row_tokens = inverse_row_tokens[:, None]
    terms = torch.zeros(b, s, len(Column), dtype=torch.int64, device=losses.device)
    terms[..., Column.LOSS] = _fixed(x, Column.LOSS)
    terms[..., Column.TOKENS] = _fixed(mask, Column.TOKENS)
    terms[..., Column.SAMPLE_LOSS] = _fixed(x * inverse_row_tokens, Column.SAMPLE_LOSS)
    terms[..., Column.NONFINITE] = ~finite
    if ids.dim() == 1:
        accumulator.index_add_(0, rows[:, 0], terms.sum(dim=1))
    else:
        accumulator.index_add_(0, rows.reshape(-1), terms.reshape(b * s, -1))


def count_samples(accumulator: torch.Tensor, ids: torch.Tensor, row_tokens: torch.Tensor) -> None:
    """Count the rows that carry loss tokens: ``ids [b]``, ``row_tokens [b]``.

    Call it on one context-parallel rank only: all of them read the same rows.
    """
    domains = accumulator.shape[0] - 1
    rows = ids.to(torch.int64)
    rows = torch.where((rows >= 0) & (rows < domains), rows, domains)
    accumulator[:, Column.SAMPLES].index_add_(0, rows, (row_tokens > 0).to(torch.int64))


def _fixed(values: torch.Tensor, column: Column) -> torch.Tensor:
    """Round to the column's fixed-point grid, half to even; exact for powers of two in fp32."""
    return torch.round(values * SCALE[column]).to(torch.int64)
