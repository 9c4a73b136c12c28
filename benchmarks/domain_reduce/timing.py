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


def eager(function: Callable[[], object], *, repeats: int = 60) -> float:
    """Device time between events around one call, with a cold L2, launches included."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    for _ in range(5):
        function()
    samples = []
    for _ in range(repeats):
        flush.zero_()
        torch.cuda.synchronize()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        torch.cuda.synchronize()
        samples.append(1e3 * start.elapsed_time(end))
    return statistics.median(samples)


def graph(functions: Sequence[Callable[[], object]], *, repeats: int = 30) -> float:
    """Time of one call inside a CUDA graph that holds all ``functions`` (rotated inputs)."""
    for function in functions:
        function()
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        for function in functions:
            function()
    return eager(captured.replay, repeats=repeats) / len(functions)


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

    with_it = eager(sandwich(function), repeats=repeats)
    return (with_it - eager(sandwich(lambda: None), repeats=repeats)) / 4


def copy_bandwidth(size: int = 1 << 30) -> float:
    """Bytes read and written in a second by a device-to-device copy."""
    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / (1e-6 * eager(lambda: target.copy_(source), repeats=20))
