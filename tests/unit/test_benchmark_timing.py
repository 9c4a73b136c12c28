"""The clocks of the kernel benchmark, on a device of Python objects with a timeline of its own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "domain_reduce"))

import timing

FLUSH, HOST, KERNEL = 300.0, 25.0, 3.0  # µs


class Timeline:
    """A host that enqueues and a device that works off what is enqueued; both clocks in µs."""

    def __init__(self) -> None:
        self.host = self.device = 0.0

    def enqueue(self, host: float, device: float) -> None:
        """Something that takes the host ``host``, and from then on the device ``device``."""
        self.host += host
        self.device = max(self.device, self.host) + device

    def synchronize(self) -> None:
        self.host = self.device = max(self.host, self.device)


class Event:
    """``torch.cuda.Event``."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline

    def record(self) -> None:
        self._timeline.enqueue(0, 0)
        self.at = self._timeline.device

    def elapsed_time(self, end: Event) -> float:
        return 1e-3 * (end.at - self.at)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A call of one kernel."""
    timeline = Timeline()
    cuda = SimpleNamespace(
        Event=lambda enable_timing: Event(timeline), synchronize=timeline.synchronize
    )
    flush = SimpleNamespace(zero_=lambda: timeline.enqueue(5, FLUSH))
    fake = SimpleNamespace(cuda=cuda, empty=lambda *size, **kind: flush, uint8=torch.uint8)
    monkeypatch.setattr(timing, "torch", fake)
    return lambda: timeline.enqueue(HOST, KERNEL)


def test_device_time_is_the_kernels_own(call: Callable[[], None]) -> None:
    assert timing.device(call) == pytest.approx(KERNEL)


def test_with_launch_holds_the_host_path(call: Callable[[], None]) -> None:
    assert timing.with_launch(call) == pytest.approx(HOST + KERNEL)
