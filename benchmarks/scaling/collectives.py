"""An int64 all-reduce among many processes of this machine, over gloo."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def all_reduce_us(ranks: int, sizes: tuple[int, ...], repeats: int = 30) -> list[float]:
    """Median wall time of an all-reduce of ``sizes`` bytes among forked processes, µs.

    Processes beyond the machine's cores take turns, so this is what a crowded machine does, an
    upper bound for one process a core.
    """
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    _child(rank, ranks, sizes, repeats, Path(folder))
                    code = 0
                finally:
                    os._exit(code)
            children.append(pid)
        failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
        if failed:
            raise RuntimeError(f"{len(failed)} of {ranks} processes failed")
        return [float(v) for v in (Path(folder) / "times").read_text().split()]


def _child(rank: int, ranks: int, sizes: tuple[int, ...], repeats: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=(folder / "store").as_uri(),
        rank=rank,
        world_size=ranks,
        timeout=timedelta(minutes=5),
    )
    medians = []
    for size in sizes:
        buffer = torch.zeros(size // 8, dtype=torch.int64)
        times = []
        for _ in range(repeats):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(buffer)
            times.append(time.perf_counter() - start)
        medians.append(1e6 * statistics.median(times))
    if rank == 0:
        (folder / "times").write_text(" ".join(map(str, medians)))
    dist.barrier()
    dist.destroy_process_group()
