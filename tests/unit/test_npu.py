"""What doctor finds out of a device, with the CPU and gloo in its place."""

from __future__ import annotations

import pytest
import torch

from domain_pretrain.backends import npu
from domain_pretrain.backends.npu import Finding


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "device_count", lambda: 2)


def test_a_device_that_can_do_everything(two_devices: None) -> None:
    assert npu.find("cpu", "gloo") == [
        Finding("sums in int64 (index_add_, shifts)", "exact"),
        Finding("float64", "yes"),
        Finding("int64 all-reduce (gloo, 2 devices)", "exact"),
    ]


def test_a_device_that_lacks_some_of_it(two_devices: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(npu, "computes_float64", lambda device: False)
    monkeypatch.setattr(npu.mp, "spawn", lambda *args, **kwargs: None)  # nobody says "exact"
    _, float64, all_reduce = npu.find("cpu", "gloo")
    assert (float64.answer, float64.fit) == (
        "missing: channel loss runs, reweighting does not",
        True,
    )
    assert (all_reduce.answer, all_reduce.fit) == (npu.LIMBS, True)


def test_a_collective_library_that_does_not_run(two_devices: None) -> None:
    *_, all_reduce = npu.find("cpu", "nosuch")
    assert not all_reduce.fit
    assert "nosuch does not run here" in all_reduce.answer


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "device_count", lambda: 0)
    (finding,) = npu.find("cpu", "gloo")
    assert not finding.fit
