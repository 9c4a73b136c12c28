"""Per-domain sums in plain torch: the oracle of every other backend, and the CPU and NPU path.

It runs on every microbatch: few operations, no host sync. Two idioms need explaining:

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
from domain_pretrain.kernels.domain_reduce.contract import FIXED, LIMIT, Inputs, Scalars
from domain_pretrain.stats import Column

INT64_MAX = 2**63 - 1
Kept = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]  # mask, ids, multipliers

# Plain numbers: torch.compile of PyTorch 2.4 takes no members of an enumeration.
_LOSS, _TOKENS, _SAMPLES, _SAMPLE_LOSS, _NONFINITE = map(int, Column)


@torch.no_grad()
def reduce(inputs: Inputs) -> None:
    """``Kernels.reduce``."""
    contract.check(inputs, sums_alone=True)
    _add_host(inputs)
    _add_sums(inputs)


def _add_sums(inputs: Inputs) -> None:
    losses, mask, ids, inverse, *_, accumulator, _totals = inputs
    assert accumulator is not None  # checked
    row_tokens = None
    if ids.dim() == 1:
        ids, bits, *more = ids.chunk(inputs.known_of_rows())
        inverse = bits.view(torch.float32)[:, None]
        row_tokens = more[0].view(torch.float32) if more else None
    assert inverse is not None  # checked
    loss, units, excess = _on_grid(losses, mask)
    sample_loss = (loss * (inverse * contract.SAMPLE_SCALE)).round_()
    by_row = ids.dim() == 1

    def per_id(terms: torch.Tensor) -> torch.Tensor:
        return terms.sum(1, dtype=torch.int64) if by_row else terms.reshape(-1).to(torch.int64)

    rows = _rows(ids, accumulator.shape[0] - 1)
    columns = {
        _LOSS: per_id(loss.round_()),
        _TOKENS: per_id(units.round_()),
        _SAMPLE_LOSS: per_id(sample_loss),
        _NONFINITE: per_id(excess != 0),
    }
    if by_row:
        counted = torch.zeros_like(rows) if row_tokens is None else (row_tokens > 0).to(rows.dtype)
        columns[_SAMPLES] = counted
        accumulator.index_add_(0, rows, torch.stack([columns[c] for c in range(len(columns))], 1))
    else:  # one column at a time: a long index over rows of five is slow on CPU
        for column, terms in columns.items():
            accumulator[:, column].index_add_(0, rows, terms)


@torch.no_grad()
def count_samples(accumulator: torch.Tensor, ids: torch.Tensor, row_tokens: torch.Tensor) -> None:
    """Count the samples that carry loss tokens, by domain, where ``Inputs.ids`` do not.

    For rows that were joined and cut, and samples of several domains. Plain torch, on any device.
    Called on one context-parallel rank only: all of them read the same rows.

    Args:
        accumulator: as in :class:`.Inputs`; added to.
        ids: integers ``[n]``, the domains.
        row_tokens: ``[n]``, loss tokens of each sample.
    """
    contract.check_device({"accumulator": accumulator, "ids": ids, "row_tokens": row_tokens})
    rows = _rows(ids, accumulator.shape[0] - 1)
    accumulator[:, _SAMPLES].index_add_(0, rows, (row_tokens > 0).to(rows.dtype))


@torch.no_grad()
def loss(inputs: Inputs) -> tuple[Scalars, Kept]:
    """``Kernels.loss``."""
    contract.check(inputs, sums_alone=False)
    host_loss = inputs.host_loss
    if inputs.accumulator is not None:
        _add_sums(inputs)
    terms, masks, excess = _on_grid(inputs.losses, inputs.mask)
    flagged, raw, units = (excess != 0).any(), _total(terms), _total(masks)
    weighted = raw
    if inputs.multipliers is not None:
        terms = terms * _weights(inputs.ids[: len(terms)], inputs.multipliers)
        excess = hardshrink(terms, LIMIT * FIXED)
        weighted = _total(_within(terms, excess))
        flagged = flagged | (excess != 0).any()
    if host_loss is None:
        value = weighted.double() / FIXED
    else:
        value = host_loss.double() + (weighted - raw).double() / FIXED
    # NaN where a token was flagged: the host's own check for NaN must see it.
    nan = torch.where(flagged, torch.nan, 0.0)
    report = torch.stack([raw.double() / FIXED + nan, units.double() / FIXED]).float()
    num_tokens = units.div(FIXED, rounding_mode="trunc").to(torch.int32)
    if not _add_host(inputs) and inputs.totals is not None:
        _add_totals(inputs.totals, raw, num_tokens)
        inputs.totals[3] += units % FIXED != 0
    kept = (inputs.mask, inputs.ids, inputs.multipliers)
    return ((value + nan).float(), report, num_tokens), kept


@torch.no_grad()
def gradient(grad: torch.Tensor, kept: Kept) -> torch.Tensor:
    """``Kernels.gradient``."""
    mask, ids, multipliers = kept
    masked = grad * mask.float()
    ids = ids[: len(mask)]  # of packed ones, the domains
    return masked if multipliers is None else _weights(ids, multipliers) * masked


def _add_host(inputs: Inputs) -> bool:
    """Whether there was something to add."""
    *_, host_loss, host_tokens, _accumulator, totals = inputs
    if host_loss is None or host_tokens is None or totals is None:
        return False
    units = torch.round(host_loss * FIXED)
    excess = hardshrink(units, contract.TOTAL_LIMIT * FIXED)
    _add_totals(totals, _within(units, excess).to(torch.int64), host_tokens)
    return True


def _add_totals(totals: torch.Tensor, loss: torch.Tensor, tokens: torch.Tensor) -> None:
    totals[:2] += torch.stack([loss, tokens.to(loss.dtype)])
    totals[2] += 1


def _on_grid(
    losses: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """mask·loss and mask in units of the grid, not yet rounded, and what exceeds the range."""
    units = mask.float() * FIXED
    loss = losses.float() * units
    excess = hardshrink(loss, LIMIT * FIXED)
    return _within(loss, excess), units, excess


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
