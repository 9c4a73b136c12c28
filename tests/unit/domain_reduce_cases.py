"""Inputs for the per-domain sums, and an oracle that shares neither code nor torch with them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from domain_pretrain.kernels.domain_reduce import Inputs
from domain_pretrain.stats import Column

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

LIMIT = 2.0**20


@dataclass(frozen=True)
class Case:
    """One microbatch."""

    losses: torch.Tensor
    mask: torch.Tensor
    ids: torch.Tensor
    inverse: torch.Tensor
    multipliers: torch.Tensor
    row_tokens: torch.Tensor | None = None

    @property
    def domains(self) -> int:
        return len(self.multipliers)

    def accumulator(self) -> torch.Tensor:
        shape = (self.domains + 1, len(Column))
        return torch.zeros(shape, dtype=torch.int64, device=self.losses.device)

    def inputs(self, losses: torch.Tensor | None = None, **given: torch.Tensor | None) -> Inputs:
        """With samples to count; ``losses`` and ``given`` fields, if any, instead of its own."""
        losses = self.losses if losses is None else losses
        inverse = self.inverse if self.ids.dim() == 2 else None
        return Inputs(losses, self.mask, self.known, inverse)._replace(**given)  # type: ignore[arg-type]

    @cached_property
    def known(self) -> torch.Tensor:
        """The ids; of rows, with what is known of them."""
        if self.ids.dim() == 2:
            return self.ids
        known = [v.view(torch.int32) for v in (self.inverse, self.row_tokens) if v is not None]
        return torch.cat([self.ids, *known])

    def to(self, device: str) -> Case:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return Case(**{name: None if v is None else v.to(device) for name, v in given.items()})


def make_case(
    seed: int = 0,
    rows: int = 3,
    columns: int = 64,
    domains: int = 4,
    *,
    per_token: bool = False,
    documents: int = 16,
    special: bool = False,
    fractional: bool = False,
    transposed: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """A random microbatch.

    Args:
        per_token: ids ``[b, s]``, in documents of about ``documents`` tokens.
        special: sprinkle NaN, infinities, subnormal and huge losses, and ids outside [0, D).
        fractional: masks between 0 and 1.
        transposed: losses are a view of an ``[s, b]`` tensor.
    """
    g = torch.Generator().manual_seed(seed)
    losses = torch.rand(rows, columns, generator=g) * 12
    mask = (torch.rand(rows, columns, generator=g) > 0.2).float()
    if fractional:
        mask *= torch.rand(rows, columns, generator=g)
    low, high = (-2, domains + 2) if special else (0, domains)
    ids = torch.randint(low, high, (rows,), generator=g)
    if per_token:
        pool = torch.randint(low, high, (rows, columns // documents + 1), generator=g)
        ids = pool.repeat_interleave(documents, dim=1)[:, :columns].contiguous()
    if special:
        values = [torch.nan, torch.inf, -torch.inf, 3e6, -3e6, LIMIT, 1e-42, -1.5, 3e38, 0.5**25]
        where = torch.randint(0, max(rows * columns, 1), (len(values),), generator=g)
        if rows * columns:
            losses.view(-1)[where] = torch.tensor(values)
    tokens = mask.sum(dim=1)
    inverse = 1.0 / torch.where(tokens >= 2**-24, tokens, 1.0)
    if transposed:
        losses = losses.t().contiguous().t()
    return Case(
        losses.to(dtype),
        mask,
        ids.int(),
        inverse[:, None].repeat(1, columns) if per_token else inverse,
        torch.rand(domains, generator=g) * 3,
        None if per_token else tokens,
    )


def cases(**fixed: object) -> SearchStrategy[Case]:
    """Random microbatches; ``fixed`` arguments of ``make_case`` stay as given."""
    from hypothesis import strategies as st  # the benchmark uses this module without it

    drawn: dict[str, SearchStrategy[Any]] = {
        "seed": st.integers(0, 2**31),
        "rows": st.integers(0, 5),
        "columns": st.sampled_from([1, 2, 4, 31, 32, 60, 128, 129, 516]),
        "domains": st.sampled_from([1, 2, 7, 300]),
        "per_token": st.booleans(),
        "documents": st.sampled_from([1, 5, 50, 1000]),
        "special": st.booleans(),
        "fractional": st.booleans(),
        "transposed": st.booleans(),
    }
    drawn.update({name: st.just(value) for name, value in fixed.items()})
    return st.builds(make_case, **drawn)


def oracle(case: Case) -> torch.Tensor:
    """The accumulator of one microbatch, token by token in float64 and Python integers."""
    cells = [[0] * len(Column) for _ in range(case.domains + 1)]
    losses, mask = _fp32(case.losses), _fp32(case.mask)
    rows, columns = losses.shape
    ids = np.broadcast_to(_per_token(case.ids), losses.shape)
    inverse = np.broadcast_to(_per_token(case.inverse), losses.shape)
    with np.errstate(all="ignore"):
        products = losses * mask
        means = products * inverse.astype(np.float32)
    for r in range(rows):
        for c in range(columns):
            cell = cells[_row(ids[r, c], case.domains)]
            cell[Column.TOKENS] += _units(mask[r, c], 2**24)
            if abs(products[r, c]) <= LIMIT:
                cell[Column.LOSS] += _units(products[r, c], 2**24)
                cell[Column.SAMPLE_LOSS] += _units(means[r, c], 2**32)
            else:
                cell[Column.NONFINITE] += 1
        if case.row_tokens is not None and case.row_tokens[r] > 0:
            cells[_row(ids[r, 0], case.domains)][Column.SAMPLES] += 1
    return torch.tensor(cells)


def oracle_loss(case: Case, *, weighted: bool = True) -> tuple[float, float, float, int]:
    """(loss, unweighted loss, tokens, num_tokens)."""
    losses, mask = _fp32(case.losses), _fp32(case.mask)
    ids = np.broadcast_to(_per_token(case.ids), losses.shape)
    multipliers = np.append(case.multipliers.cpu().numpy(), np.float32(0))
    total = raw = tokens = 0
    flagged = False
    with np.errstate(all="ignore"):
        for index in np.ndindex(*losses.shape):
            tokens += _units(mask[index], 2**24)
            product = losses[index] * mask[index]
            weight = multipliers[_row(ids[index], case.domains)] if weighted else np.float32(1)
            if abs(product) <= LIMIT and abs(weight * product) <= LIMIT:
                raw += _units(product, 2**24)
                total += _units(weight * product, 2**24)
            else:
                flagged = True
    loss, plain = (np.nan if flagged else v / 2**24 for v in (total, raw))
    loss, plain, count = (float(np.float32(v)) for v in (loss, plain, tokens / 2**24))
    return loss, plain, count, tokens // 2**24


def _units(value: np.float32, scale: int) -> int:
    """Half to even; the product is exact in float64."""
    return int(np.rint(np.float64(value) * scale))


def _row(domain: int, domains: int) -> int:
    return int(domain) if 0 <= domain < domains else domains


def _fp32(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def _per_token(tensor: torch.Tensor) -> np.ndarray:
    array = tensor.detach().cpu().numpy()
    return array if array.ndim == 2 else array[:, None]
