"""Clocks. All times are medians, in microseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch


def cpu(functions: Sequence[Callable[[], object]], *, seconds: float = 0.3) -> list[float]:
    """CPU time of a call of each, with one thread; in turns, so that a busy machine hits all."""
    torch.set_num_threads(1)
    for function in functions:
        function()
    times: list[list[float]] = [[] for _ in functions]
    end = time.perf_counter() + seconds * len(functions)
    while time.perf_counter() < end or len(times[0]) < 9:
        for function, samples in zip(functions, times, strict=True):
            start = time.thread_time()
            function()
            samples.append(1e6 * (time.thread_time() - start))
    return [statistics.median(samples) for samples in times]


FLUSH = 1 << 30  # bytes; writing them empties L2, and takes longer than a call takes the host


def device(function: Callable[[], object], *, repeats: int = 60) -> float:
    """Device time of one call, with a cold L2.

    Nothing waits for the device in between, so that it still flushes while the host enqueues the
    call. A call that synchronises by itself is timed with what it waits.
    """
    return _between_events(function, repeats, lambda: None)


def with_launch(function: Callable[[], object], *, repeats: int = 60) -> float:
    """The same on a device that waits for work: what the host needs to enqueue it is included."""
    return _between_events(function, repeats, torch.cuda.synchronize)


def _between_events(
    function: Callable[[], object], repeats: int, before: Callable[[], object]
) -> float:
    flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        function()
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, end in pairs:
        flush.zero_()
        before()
        start.record()
        function()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(1e3 * start.elapsed_time(end) for start, end in pairs)


def graph(functions: Sequence[Callable[[], object]], *, repeats: int = 30) -> float:
    """Time of one call inside a CUDA graph that holds all ``functions`` (rotated inputs)."""
    for function in functions:
        function()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for function in functions:
            function()
    return device(captured.replay, repeats=repeats) / len(functions)


def between_matmuls(function: Callable[[], object], *, repeats: int = 30) -> float:
    """What a call adds between two matrix products of about 2 ms: shows what a host sync costs."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)

    def sandwich(middle: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(4):
                a @ a
                middle()
            a @ a

        return run

    with_it = device(sandwich(function), repeats=repeats)
    return (with_it - device(sandwich(lambda: None), repeats=repeats)) / 4


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes read and written in a second by a device-to-device copy."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / (1e-6 * graph([lambda: target.copy_(source)], repeats=20))
