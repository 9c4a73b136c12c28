"""This process among the processes of the run, as torchrun numbers them."""

from __future__ import annotations

import os
from collections.abc import Mapping

# What torchrun would have set for a single process. Port 0: any free one.
SINGLE_PROCESS: Mapping[str, str] = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


def started_by_launcher() -> bool:
    """Whether torchrun, or whatever stands for it, has numbered this process."""
    return "RANK" in os.environ


def rank() -> int:
    """Global rank of this process; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Processes of the run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


NOTICE = "domain_pretrain: "  # begins every line of :func:`notice`


def notice(text: str) -> None:
    """Print one line at start-up, from rank 0."""
    if rank() == 0:
        print(f"{NOTICE}{text}", flush=True)
