"""The tap: what the host sees of a batch, and what the plugin keeps."""

from __future__ import annotations

import pytest
import torch

from domain_pretrain.data.origin import ById, Constant
from domain_pretrain.errors import IntegrityError
from domain_pretrain.flow.domain_step import DomainStep
from domain_pretrain.flow.tap import BatchTap, Rows, Source

CPU = torch.device("cpu")
TABLE = Source(ById((2, 0, 0, 1)))


def batch(ids: list[int] | None, rows: int = 2) -> dict[str, torch.Tensor]:
    mask = torch.ones(rows, 4)
    mask[0, :3] = 0
    ids_key = {} if ids is None else {"dataset_id": torch.tensor(ids, dtype=torch.int16)}
    return {"tokens": torch.zeros(rows, 4), "loss_mask": mask, **ids_key}


def test_host_gets_a_copy_without_ids() -> None:
    """The rerun machine hands the very same dict out again."""
    original = batch([3, 0])
    tap = BatchTap(iter([original, original]))
    for _ in range(2):
        seen = next(tap)
        assert seen.keys() == {"tokens", "loss_mask"}
        assert seen["tokens"] is original["tokens"]
        rows = tap.rows(TABLE, CPU)
        assert rows.domains.tolist() == [1, 2]
        assert rows.tokens.tolist() == [1, 4]
    assert "dataset_id" in original
    with pytest.raises(StopIteration):
        next(tap)


def test_other_attributes_are_the_iterators() -> None:
    class Loader:
        current_epoch = 7

        def __next__(self) -> dict[str, torch.Tensor]:
            return batch([0, 0])

    tap = BatchTap(Loader())  # type: ignore[arg-type]
    assert tap.current_epoch == 7
    assert iter(tap) is tap


def test_constant_source_needs_no_ids() -> None:
    tap = BatchTap(iter([batch(None)]))
    next(tap)
    assert tap.rows(Source(Constant(4)), CPU).domains.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("ids", "source", "message"),
    [
        (None, TABLE, "carries no dataset_id"),
        ([0, 1], Source(Constant(0)), "the catalog does not describe the data"),
        ([0, 1, 2], TABLE, "3 entries for 2 rows"),
    ],
)
def test_ids_and_catalog_must_agree(ids: list[int] | None, source: Source, message: str) -> None:
    tap = BatchTap(iter([batch(ids)]))
    next(tap)
    with pytest.raises(IntegrityError, match=message):
        tap.rows(source, CPU)


def test_a_script_that_takes_its_batches_elsewhere() -> None:
    with pytest.raises(IntegrityError, match="took 0 batches"):
        BatchTap(iter([])).rows(TABLE, CPU)
    tap = BatchTap(iter([[torch.zeros(2, 4)]]))
    assert isinstance(next(tap), list)
    with pytest.raises(IntegrityError, match="took 1 batches, none a dict with 'loss_mask'"):
        tap.rows(TABLE, CPU)


def test_rows_of_samples_that_come_again_are_their_own() -> None:
    """They are remembered by their ids and tokens, in the order of the batch."""
    source = Source(ById((2, 0, 0, 1)))
    expected = []
    for ids, row in (([3, 0], 0), ([0, 3], 0), ([3, 0], 1), ([3, 0], 0), ([0, 3], 0), ([3], 0)):
        mask = torch.ones(len(ids), 4)
        mask[row, 1:] = 0
        given = {"loss_mask": mask, "dataset_id": torch.tensor(ids)}
        tap = BatchTap(iter([given]))
        next(tap)
        rows = tap.rows(source, CPU)
        tokens = [1.0 if n == row else 4.0 for n in range(len(ids))]
        expected.append(([(2, 0, 0, 1)[i] for i in ids], tokens, [1 / n for n in tokens]))
        assert (rows.domains.tolist(), rows.tokens.tolist(), rows.inverse.tolist()) == expected[-1]
        by_torch = Rows.of(rows.domains, rows.tokens)
        assert torch.equal(rows.packed, by_torch.packed), "as where the batch is on a device"


def test_a_mask_of_more_dimensions_and_of_another_type() -> None:
    mask = torch.tensor([[[True], [False], [True]], [[True], [True], [True]]])
    tap = BatchTap(iter([{"loss_mask": mask, "dataset_id": torch.tensor([3, 0])}]))
    next(tap)
    rows = tap.rows(TABLE, CPU)
    assert rows.tokens.tolist() == [2, 3] and rows.domains.tolist() == [1, 2]


def test_samples_that_come_again_are_on_the_device_already() -> None:
    """The host waits for no copy; another device gets one of its own."""
    source, device = Source(ById((2, 0, 0, 1))), torch.device("meta")
    packed = []
    for where in (device, CPU, device):
        tap = BatchTap(iter([batch([3, 0])]))
        next(tap)
        packed.append(tap.rows(source, where).packed)
    assert packed[0] is packed[2] and packed[0].device == device
    assert packed[1].device == CPU


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16])
def test_ids_of_a_loop_of_ones_own_become_int32(dtype: torch.dtype) -> None:
    """As the kernels read them; what does not fit is of no domain still."""
    ids = torch.tensor(
        [1, -1, 2**32 + 1, -(2**32)] if dtype == torch.int64 else [1, -1], dtype=dtype
    )
    domains = Rows.of(ids, torch.ones(len(ids))).domains
    assert domains.dtype == torch.int32
    assert domains.tolist() == [1, -1, 2**31 - 1, -1][: len(ids)]


def test_a_sample_of_less_than_a_token() -> None:
    """Its mean is that of its losses, as of any other sample; without tokens there is nothing."""
    mask = torch.tensor([[0.25, 0.25, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    tap = BatchTap(iter([{"loss_mask": mask, "dataset_id": torch.tensor([0, 1, 2])}]))
    next(tap)
    rows = tap.rows(Source(ById((0, 1, 2))), CPU)
    assert rows.inverse.tolist() == [2.0, 0.25, 1.0]
    assert torch.equal(Rows.of(rows.domains, rows.tokens).packed, rows.packed)
    step = DomainStep.create(("a", "b"), tokens_per_step=4.5)
    step.open()
    step.loss(torch.full((2, 4), 4.0), mask[:2], torch.tensor([0, 1]))
    step.end_step()
    stats = step.stats()
    assert [stats.get(name).sample_loss_sum for name in ("a", "b")] == [4.0, 4.0]  # type: ignore[union-attr]


def test_domains_of_tokens_do_not_wrap() -> None:
    mask = torch.ones(1, 4)
    ids = torch.tensor([[0, 2**32, -(2**32), 1]])
    rows = Rows.of_tokens(ids, mask, mask.sum(1))
    assert rows.by_token is not None and rows.present is not None
    assert rows.by_token.tolist() == [[0, 2**31 - 1, -1, 1]]
    assert rows.present.tolist() == [-1, 0, 1, 2**31 - 1]
