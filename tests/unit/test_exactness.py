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
from domain_pretrain.flow.groups import Groups
from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.kernels.domain_reduce import Inputs, select
from domain_pretrain.kernels.exactness import device_check
from domain_pretrain.kernels.exactness.transport import limb_bits, pack_limbs, unpack_limbs

INT64 = st.integers(-(2**63), 2**63 - 1)
RANKS = 4
CPU = torch.device("cpu")


def limbs_of(*values: int, ranks: int) -> torch.Tensor:
    return pack_limbs(torch.tensor(values), limb_bits(ranks))


@given(st.lists(INT64, min_size=1, max_size=40), st.integers(1, 31))
def test_one_rank_is_exact(values: list[int], bits: int) -> None:
    tensor = torch.tensor(values)
    assert torch.equal(unpack_limbs(pack_limbs(tensor, bits), bits), tensor)


@given(st.data(), st.integers(1, 2048))
def test_a_sum_over_ranks_is_exact(data: st.DataObject, ranks: int) -> None:
    bound = 2**63 // ranks - 1
    values = data.draw(st.lists(st.integers(-bound, bound), min_size=1, max_size=8))
    tensor = torch.tensor(values).repeat(ranks)  # the worst case: all ranks' limbs are alike
    tensor += torch.arange(len(tensor)) % 2
    bits = limb_bits(ranks)
    limbs = pack_limbs(tensor, bits).unflatten(1, (ranks, -1))
    summed = limbs.sum(dim=1, dtype=torch.int32)
    assert torch.equal(summed.long(), limbs.long().sum(dim=1)), "a limb left int32"
    assert torch.equal(unpack_limbs(summed, bits), tensor.view(ranks, -1).sum(dim=0))


@pytest.mark.parametrize(
    ("ranks", "limbs"), [(1, 3), (2, 3), (512, 3), (513, 4), (16384, 4), (32768, 4)]
)
def test_limbs_are_as_wide_as_is_safe(ranks: int, limbs: int) -> None:
    bits = limb_bits(ranks)
    most = 2**bits - 1  # of one limb
    assert ranks * most < 2**31 <= ranks * (2 * most + 1), "not the widest"
    full = torch.tensor([2 ** (2 * bits) - 1, -(2 ** (2 * bits)), -1, 2**63 - 1, -(2**63)])
    packed = pack_limbs(full, bits)
    assert len(packed) == limbs
    total = packed.long() * ranks
    assert total.abs().max() < 2**31
    # Sums that leave int64 wrap as an int64 all-reduce does.
    assert torch.equal(unpack_limbs(total.int(), bits), full * ranks)


def _groups(adds_int64: bool) -> Groups:
    return Groups(dp_cp=dist.group.WORLD, dp_cp_size=RANKS, adds_int64=adds_int64)


def _refusing_int64(all_reduce):  # type: ignore[no-untyped-def]
    def refusing(tensor: torch.Tensor, *args: object, **kwargs: object) -> None:
        if tensor.dtype == torch.int64:
            raise RuntimeError("unsupported data type")
        all_reduce(tensor, *args, **kwargs)

    return refusing


def _through_float64(all_reduce):  # type: ignore[no-untyped-def]
    def rounding(tensor: torch.Tensor, *args: object, **kwargs: object) -> None:
        detour = tensor.double() if tensor.dtype == torch.int64 else tensor
        all_reduce(detour, *args, **kwargs)
        tensor.copy_(detour)

    return rounding


def _rank(rank: int, store: str, results) -> None:  # type: ignore[no-untyped-def]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    case = make_case(12, rows=RANKS, columns=64, domains=5, per_token=True, special=True)
    mine = slice(rank, rank + 1)
    found = []
    exact = dist.all_reduce
    for all_reduce in (exact, _refusing_int64(exact), _through_float64(exact)):
        dist.all_reduce = all_reduce
        ledger = Ledger(case.domains, _groups(device_check.all_reduces_int64(CPU)), CPU)
        tokens = (case.losses[mine], case.mask[mine], case.ids[mine], case.inverse[mine])
        select("reference").domain_reduce(Inputs(*tokens, accumulator=ledger.sums[0]))
        ledger.reduce()
        found.append((ledger._groups.adds_int64, ledger.sums[0].tolist()))
    results.put(found)
    dist.barrier()
    dist.destroy_process_group()


def test_four_ranks_equal_one_rank_however_the_sums_travel(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    results = context.Queue()
    processes = [
        context.Process(target=_rank, args=(rank, str(tmp_path / "store"), results))
        for rank in range(RANKS)
    ]
    for process in processes:
        process.start()
    got = [results.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    case = make_case(12, rows=RANKS, columns=64, domains=5, per_token=True, special=True)
    expected = oracle(case).tolist()
    assert got == [[(True, expected), (False, expected), (False, expected)]] * RANKS


def test_a_device_that_computes_exactly_passes() -> None:
    device_check.check_device(torch.device("cpu"))


def test_a_device_that_rounds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sums, exact = device_check._sums, torch.Tensor.index_add_

    def through_fp32(self, dim, index, source):  # type: ignore[no-untyped-def]
        return self.copy_(exact(self.float(), dim, index, source.float()).long())

    def sums_of_device(device: torch.device) -> torch.Tensor:
        if device.index is None:
            return sums(device)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "index_add_", through_fp32)
            return sums(device)

    monkeypatch.setattr(device_check, "_sums", sums_of_device)
    with pytest.raises(UnsupportedError, match="cpu:0 does not compute the per-domain sums exact"):
        device_check.check_device(torch.device("cpu", 0))


def test_a_device_without_an_operation_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="meta cannot run the per-domain sums"):
        device_check.check_device(torch.device("meta"))
