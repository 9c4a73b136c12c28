"""Per-domain sums in plain torch: the oracle of every other backend, and the CPU and NPU path.

Few operations and small temporaries, because it runs on every microbatch; no host sync. Two
spellings that save time need a word:

* A term beyond the range is found with ``hardshrink``, which keeps what exceeds its threshold
  (NaN included) and zeroes the rest: ``y - hardshrink(y)`` is y, or 0, or NaN for an infinity. On
  CPU it is vectorised, several times as fast as ``where``.
* Ids outside [0, D) become row D without a comparison: clamped to [-1, D], the sign bit cleared,
  clamped again.
"""

from __future__ import annotations

import torch
from torch.nn.functional import hardshrink, pad

from domain_pretrain.kernels.domain_reduce import contract
from domain_pretrain.kernels.domain_reduce.contract import FIXED, LIMIT
from domain_pretrain.stats import Column

INT64_MAX = 2**63 - 1
BLOCK = 32768  # tokens


@torch.no_grad()
def domain_reduce(
    accumulator: torch.Tensor,
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    inverse_row_tokens: torch.Tensor,
    row_tokens: torch.Tensor | None = None,
    totals: torch.Tensor | None = None,
    host_loss: torch.Tensor | None = None,
    host_tokens: torch.Tensor | None = None,
) -> None:
    """Add the sums of one microbatch to ``accumulator``: see the package for the contract."""
    contract.check_reduce(accumulator, losses, mask, ids, inverse_row_tokens, row_tokens)
    contract.check_host(totals, host_loss, host_tokens)
    if totals is not None and host_loss is not None and host_tokens is not None:
        _add_host(totals, host_loss, host_tokens)
    for block in _blocks(losses, mask, ids, inverse_row_tokens):
        losses, mask, ids, inverse_row_tokens = block
        _reduce_block(accumulator, losses, mask, ids, inverse_row_tokens, row_tokens)
        row_tokens = None  # counted, once


def _reduce_block(
    accumulator: torch.Tensor,
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    inverse_row_tokens: torch.Tensor,
    row_tokens: torch.Tensor | None,
) -> None:
    loss, tokens, excess = _on_grid(losses, mask)
    if inverse_row_tokens.dim() == 1:
        inverse_row_tokens = inverse_row_tokens[:, None]
    sample_loss = (loss * (inverse_row_tokens * contract.SAMPLE_SCALE)).round_()
    # One term an id: rows are summed first where a row has one domain.
    per_id = _sum_rows if ids.dim() == 1 else _flatten
    rows = _rows(ids, accumulator.shape[0] - 1)
    columns = {
        Column.LOSS: per_id(loss.round_()),
        Column.TOKENS: per_id(tokens.round_()),
        Column.SAMPLE_LOSS: per_id(sample_loss),
        Column.NONFINITE: per_id(excess != 0),
    }
    if ids.dim() == 1:
        counted = torch.zeros_like(rows) if row_tokens is None else (row_tokens > 0).to(rows.dtype)
        columns[Column.SAMPLES] = counted
        accumulator.index_add_(0, rows, torch.stack([columns[c] for c in Column], 1))
    else:  # one column at a time: a long index over rows of five is slow on CPU
        for column, terms in columns.items():
            accumulator[:, column].index_add_(0, rows, terms)


@torch.no_grad()
def count_samples(accumulator: torch.Tensor, ids: torch.Tensor, row_tokens: torch.Tensor) -> None:
    """Count the samples that carry loss tokens: see the package for the contract."""
    contract.check_accumulator(accumulator)
    contract.check_samples(ids, row_tokens)
    rows = _rows(ids, accumulator.shape[0] - 1)
    accumulator[:, Column.SAMPLES].index_add_(0, rows, (row_tokens > 0).to(rows.dtype))


@torch.no_grad()
def domain_loss(
    accumulator: torch.Tensor | None,
    losses: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    inverse_row_tokens: torch.Tensor | None,
    multipliers: torch.Tensor | None,
    row_tokens: torch.Tensor | None,
    host_loss: torch.Tensor | None,
    totals: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The values of the loss, and the sums where an accumulator is given."""
    contract.check_loss(
        accumulator, losses, mask, ids, inverse_row_tokens, multipliers, row_tokens, host_loss
    )
    contract.check_totals(totals)
    if accumulator is not None and inverse_row_tokens is not None:
        domain_reduce(accumulator, losses, mask, ids, inverse_row_tokens, row_tokens)
    blocks = [_loss_block(*block, multipliers=multipliers) for block in _blocks(losses, mask, ids)]
    weighted, raw, tokens, flagged = torch.stack(blocks).sum(0).unbind(0)
    if host_loss is None:
        value = weighted.double() / FIXED
    else:
        value = host_loss.double() + (weighted - raw).double() / FIXED
    # NaN where a token was flagged: the host's own check for NaN must see it.
    nan = torch.where(flagged > 0, torch.nan, 0.0)
    report = torch.stack([raw.double() / FIXED + nan, tokens.double() / FIXED]).float()
    num_tokens = tokens.div(FIXED, rounding_mode="trunc").to(torch.int32)
    if totals is not None:
        _add_totals(totals, raw, num_tokens)
    return (value + nan).float(), report, num_tokens


def _loss_block(
    losses: torch.Tensor, mask: torch.Tensor, ids: torch.Tensor, *, multipliers: torch.Tensor | None
) -> torch.Tensor:
    """int64 ``[4]``: weighted loss, loss, tokens, how many terms were flagged."""
    loss, tokens, excess = _on_grid(losses, mask)
    flagged = (excess != 0).sum()
    raw = _total(loss)
    weighted = raw
    if multipliers is not None:
        terms = loss * _weights(ids, multipliers)
        excess = hardshrink(terms, LIMIT * FIXED)
        weighted = _total(_within(terms, excess))
        flagged = flagged + (excess != 0).sum()
    return torch.stack([weighted, raw, _total(tokens), flagged])


@torch.no_grad()
def loss_gradient(
    grad: torch.Tensor,
    mask: torch.Tensor,
    ids: torch.Tensor,
    multipliers: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """``w[domain]·(grad·mask)`` ``[b, s]``, in fp32, rounded to ``dtype`` once at the end."""
    gradient = grad * mask.float()
    if multipliers is not None:
        gradient = _weights(ids, multipliers) * gradient
    return gradient.to(dtype)


def _add_host(totals: torch.Tensor, loss: torch.Tensor, tokens: torch.Tensor) -> None:
    units = torch.round(loss * FIXED)
    excess = hardshrink(units, contract.TOTAL_LIMIT * FIXED)
    _add_totals(totals, _within(units, excess).to(torch.int64), tokens)


def _add_totals(totals: torch.Tensor, loss: torch.Tensor, tokens: torch.Tensor) -> None:
    totals[:2] += torch.stack([loss, tokens.to(loss.dtype)])
    totals[2] += 1


def _blocks(losses: torch.Tensor, *others: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Stretches of columns that are summed one after the other; the sums do not depend on them.

    On CPU the temporaries of a block stay in cache, where those of a large microbatch would be
    mapped and unmapped by the allocator in every operation. Elsewhere launches cost more.
    """
    tensors, (rows, columns) = (losses, *others), losses.shape
    if losses.device.type != "cpu" or rows * columns <= BLOCK:
        return [tensors]
    width = max(1, BLOCK // rows)
    stretches = [slice(start, start + width) for start in range(0, columns, width)]
    return [tuple(t if t.dim() == 1 else t[:, columns] for t in tensors) for columns in stretches]


def _on_grid(
    losses: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mask·loss and mask in units of the grid, not yet rounded, and what exceeds the range."""
    tokens = mask.float() * FIXED
    loss = losses.float() * tokens
    excess = hardshrink(loss, LIMIT * FIXED)
    return _within(loss, excess), tokens, excess


def _within(values: torch.Tensor, excess: torch.Tensor) -> torch.Tensor:
    """``values``, in place, with 0 where ``excess`` (their hardshrink) is not 0."""
    return values.sub_(excess).nan_to_num_(0.0, 0.0, 0.0)


def _weights(ids: torch.Tensor, multipliers: torch.Tensor) -> torch.Tensor:
    """The multiplier of every token, ``[b, 1]`` or ``[b, s]``; 0 for an invalid id."""
    rows = _rows(ids, multipliers.shape[0])
    return pad(multipliers.float(), (0, 1))[rows].view(*ids.shape, *[1] * (2 - ids.dim()))


def _rows(ids: torch.Tensor, domains: int) -> torch.Tensor:
    """The accumulator's row of every id, flat int64; ``domains`` for an invalid one."""
    rows = ids.reshape(-1).to(torch.int64)
    return rows.clamp(-1, domains).bitwise_and_(INT64_MAX).clamp_(max=domains)


def _total(terms: torch.Tensor) -> torch.Tensor:
    return terms.round().sum(dtype=torch.int64)


def _sum_rows(terms: torch.Tensor) -> torch.Tensor:
    return terms.sum(1, dtype=torch.int64)


def _flatten(terms: torch.Tensor) -> torch.Tensor:
    return terms.reshape(-1).to(torch.int64)
