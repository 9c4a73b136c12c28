"""Sums that travel: int64 all-reduce over ranks, directly and as int32 limbs."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from domain_reduce_cases import make_case, oracle
from hypothesis import given
from hypothesis import strategies as st

from domain_pretrain.errors import UnsupportedError
from domain_pretrain.kernels.domain_reduce import probe, reference
from domain_pretrain.kernels.domain_reduce.transport import (
    MAX_RANKS,
    all_reduce_limbs,
    pack_limbs,
    unpack_limbs,
)

INT64 = st.integers(-(2**63), 2**63 - 1)
RANKS = 4


@given(st.lists(INT64, min_size=1, max_size=40))
def test_one_rank_is_exact(values: list[int]) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(unpack_limbs(pack_limbs(tensor)), tensor)


@given(st.data(), st.integers(1, MAX_RANKS))
def test_a_sum_over_ranks_is_exact(data: st.DataObject, ranks: int) -> None:
    bound = 2**63 // ranks - 1
    values = data.draw(st.lists(st.integers(-bound, bound), min_size=1, max_size=8))
    tensor = torch.tensor(values).repeat(ranks)  # the worst case: all ranks' limbs are alike
    tensor += torch.arange(len(tensor)) % 2
    limbs = pack_limbs(tensor).view(3, ranks, -1)
    summed = limbs.sum(dim=1, dtype=torch.int32)
    assert torch.equal(summed.long(), limbs.long().sum(dim=1)), "a limb left int32"
    assert torch.equal(unpack_limbs(summed), tensor.view(ranks, -1).sum(dim=0))


def test_the_number_of_ranks_is_the_largest_that_is_safe() -> None:
    most = 2**22 - 1  # of one limb
    assert MAX_RANKS * most < 2**31 <= (MAX_RANKS + 1) * most
    full = torch.tensor([2**44 - 1, -(2**44), -1, 2**63 - 1, -(2**63)])
    limbs = pack_limbs(full).long()
    assert limbs.max() == most
    total = limbs * MAX_RANKS
    assert total.abs().max() < 2**31
    # Sums that leave int64 wrap as an int64 all-reduce does.
    assert torch.equal(unpack_limbs(total.int()), full * MAX_RANKS)


def _rank(rank: int, store: str, results) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    case = make_case(12, rows=RANKS, columns=64, domains=5, per_token=True, special=True)
    mine = slice(rank, rank + 1)
    sums = case.accumulator()
    reference.domain_reduce(
        sums, case.losses[mine], case.mask[mine], case.ids[mine], case.inverse[mine]
    )
    limbs = sums.clone()
    dist.all_reduce(sums)
    all_reduce_limbs(limbs)
    exact = probe.probe_all_reduce(torch.device("cpu"))
    results.put((sums.tolist(), limbs.tolist(), exact))
    dist.barrier()
    dist.destroy_process_group()


def test_four_ranks_equal_one_rank(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, str(tmp_path / "store"), results))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    got = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    case = make_case(12, rows=RANKS, columns=64, domains=5, per_token=True, special=True)
    expected = oracle(case).tolist()
    assert got == [(expected, expected, True)] * RANKS


def test_more_ranks_than_the_limbs_carry_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda group: MAX_RANKS + 1)
    with pytest.raises(ValueError, match="up to 512 ranks, got 513"):
        all_reduce_limbs(torch.zeros(1, dtype=torch.int64))


def test_a_device_that_computes_exactly_passes() -> None:
    probe.probe_device(torch.device("cpu"))


def test_a_device_that_rounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, exact = probe._sums, torch.Tensor.index_add_

    def through_fp32(self, dim, index, source):  # type: ignore[no-untyped-def]
        return self.copy_(exact(self.float(), dim, index, source.float()).long())

    def sums_of_device(device: torch.device) -> torch.Tensor:
        if device.index is None:
            return sums(device)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "index_add_", through_fp32)
            return sums(device)

    monkeypatch.setattr(probe, "_sums", sums_of_device)
    with pytest.raises(UnsupportedError, match="cpu:0 does not compute the per-domain sums exact"):
        probe.probe_device(torch.device("cpu", 0))


def test_a_device_without_an_operation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="meta cannot run the per-domain sums"):
        probe.probe_device(torch.device("meta"))
