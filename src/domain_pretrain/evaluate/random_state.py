"""What a run draws does not depend on what runs in between."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@contextmanager
def kept_random_state(device: torch.device | None = None) -> Iterator[None]:
    """Python, NumPy and PyTorch draw afterwards as if nothing had been drawn or seeded within.

    Args:
        device: whose generator is kept beside the CPU's; None: no other's.
    """
    import torch  # the config is read without it

    devices = [] if device is None or device.type == "cpu" else [device]
    kind = devices[0].type if devices else "cuda"
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
