"""Attention over 2 and 4 gloo processes equals attention computed entry by entry in one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from domain_pretrain.backends import context_parallel as cp_attention
from domain_pretrain.backends.attention_logits import keep
from domain_pretrain.backends.core_attention import block_mask, first_head
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.zigzag import natural_order, zigzag_order

WORLD = 4
MODES = {
    "allgather": cp_attention.allgather_attention,
    "ulysses": cp_attention.ulysses_attention,
}


@dataclass(frozen=True)
class Case:
    """Sizes of a problem: s positions, b rows, h query heads in g groups, head sizes d and e."""

    mode: str
    cp: int
    groups: int = 4
    heads: int = 4
    batch: int = 2
    length: int = 16
    head_size: int = 3
    value_size: int = 3
    documents: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return "-".join(str(v) for v in vars(self).values())


CASES = [
    Case(mode, cp, **extra)
    for mode in MODES
    for cp in (2, 4)
    for extra in (
        {},
        {"groups": 2},  # fewer key heads than CP ranks where cp = 4
        {"groups": 1, "value_size": 5},
        {"documents": (0, 5, 6, 16), "batch": 1},
    )
]


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and the gradient of the result, whole sequences in float64."""
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(case.length, case.batch, *size, generator=generator, dtype=torch.float64)
        for size in (
            (case.heads, case.head_size),
            (case.groups, case.head_size),
            (case.groups, case.value_size),
            (case.heads, case.value_size),
        )
    )


def by_definition(case: Case) -> list[Tensor]:
    """The result and the gradients of query, key, value, from the formula, a score at a time."""
    *leaves, gradient = inputs(case)
    query, key, value = (x.requires_grad_() for x in leaves)
    bounds = case.documents or (0, case.length)
    rows = []
    for row in range(case.batch):
        heads = []
        for head in range(case.heads):
            group = head * case.groups // case.heads
            out = []
            for q in range(case.length):
                begin = max(b for b in bounds if b <= q)
                scores = key[begin : q + 1, row, group] @ query[q, row, head]
                weights = torch.softmax(scores / math.sqrt(case.head_size), 0)
                out.append(weights @ value[begin : q + 1, row, group])
            heads.append(torch.stack(out))
        rows.append(torch.stack(heads, dim=1))
    result = torch.stack(rows, dim=1)
    result.backward(gradient)
    return [result.detach(), *(x.grad for x in (query, key, value))]


def on_this_rank(case: Case, group: dist.ProcessGroup) -> list[Tensor]:
    """The rank's part of what :func:`by_definition` returns."""
    parts = [zigzag_order(x, case.cp)[group.rank()] for x in inputs(case)]
    query, key, value = (x.requires_grad_() for x in parts[:3])
    documents = torch.tensor(case.documents) if case.documents else None
    blocked = block_mask(case.length, causal=True, documents=documents)
    if case.mode == "allgather":
        blocked = zigzag_order(blocked, case.cp)[group.rank()]
    scale = 1 / math.sqrt(case.head_size)
    module = SimpleNamespace(
        training=True, num_attention_heads_per_partition=case.heads, current_max_attn_logits=None
    )
    note = partial(keep, module, first=first_head(module, group, ulysses=case.mode == "ulysses"))
    options = {"scale": scale, "note": note}
    result = MODES[case.mode](query, key, value, blocked[None, None], group, **options)
    result.backward(parts[3])
    gradients = [x.grad for x in (query, key, value)]
    return [result.detach(), *gradients, module.current_max_attn_logits]


def run_rank(rank: int, folder: str) -> None:
    """One process of the four; groups of two are ranks 0, 1 and 2, 3."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", WORLD)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORLD)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    groups = {2: pairs[rank // 2], 4: dist.group.WORLD}
    results = {case.name: on_this_rank(case, groups[case.cp]) for case in CASES}
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[Tensor]]]:
    """By rank: case name → the rank's results. The processes start once for all cases."""
    folder = tmp_path_factory.mktemp("gloo")
    torch.multiprocessing.spawn(run_rank, (str(folder),), nprocs=WORLD)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_equals_attention_in_one_process(
    case: Case, parallel: list[dict[str, list[Tensor]]]
) -> None:
    parts = zip(*(parallel[rank][case.name] for rank in range(case.cp)), strict=True)
    names = ("result", "query.grad", "key.grad", "value.grad")
    for name, part, expected in zip(names, parts, by_definition(case), strict=False):
        whole = natural_order(torch.stack(part))
        torch.testing.assert_close(whole, expected, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_largest_logits(case: Case, parallel: list[dict[str, list[Tensor]]]) -> None:
    """Over the ranks, those of all pairs that are not masked; each head has its own."""
    query, key, *_ = inputs(case)
    key = key.repeat_interleave(case.heads // case.groups, dim=2)
    documents = torch.tensor(case.documents) if case.documents else None
    blocked = block_mask(case.length, causal=True, documents=documents)
    logits = torch.einsum("qbhd,kbhd->bhqk", query, key) / math.sqrt(case.head_size)
    expected = logits.masked_fill(blocked, -math.inf).amax((0, 2, 3))
    found = torch.stack([parallel[rank][case.name][4] for rank in range(case.cp)]).amax(0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert len(set(expected.tolist())) == case.heads


def test_evaluations_do_not_count() -> None:
    module = SimpleNamespace(
        training=True, num_attention_heads_per_partition=3, current_max_attn_logits=None
    )
    for training, logits, first in (
        (True, [1.0, 5.0], 0),
        (True, [2.0, 3.0], 1),
        (False, [9.0, 9.0, 9.0], 0),
    ):
        module.training = training
        keep(module, torch.tensor(logits), first)
    assert module.current_max_attn_logits.tolist() == [1.0, 5.0, 3.0]


def test_ulysses_names_heads_that_cannot_be_divided() -> None:
    with pytest.raises(
        UnsupportedError, match=r"6 attention heads.*4 context parallel.*all_gather"
    ):
        cp_attention.check_heads(6, 4)


@given(cp=st.integers(1, 6), half=st.integers(1, 4), width=st.integers(1, 3))
def test_zigzag_order(cp: int, half: int, width: int) -> None:
    length = 2 * cp * half
    position = torch.arange(length)[:, None].expand(length, width)
    by_rank = zigzag_order(position, cp)
    for rank in range(cp):
        mirror = 2 * cp - 1 - rank
        first = range(rank * half, (rank + 1) * half)
        second = range(mirror * half, (mirror + 1) * half)
        assert by_rank[rank, :, 0].tolist() == [*first, *second]
    assert torch.equal(natural_order(by_rank), position)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), rest=st.integers(0, 3))
def test_block_mask(lengths: list[int], rest: int) -> None:
    """What lies behind the last length is a document of its own."""
    document = [i for i, n in enumerate([*lengths, rest]) for _ in range(n)]
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    size = len(document)
    for causal in (True, False):
        expected = [
            [document[q] != document[k] or (causal and k > q) for k in range(size)]
            for q in range(size)
        ]
        assert block_mask(size, causal=causal, documents=bounds).tolist() == expected
