"""From measured pieces to a cluster: what a step takes more, by ranks and domains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Layout:
    """How the ranks of a cluster are used.

    Attributes:
        ranks: GPUs or NPUs.
        tensor, pipeline: model-parallel sizes; the rest is data and context parallel.
    """

    ranks: int
    tensor: int
    pipeline: int

    @property
    def dp_cp(self) -> int:
        """Ranks that the sums of a step are reduced over."""
        return self.ranks // (self.tensor * self.pipeline)


# As large models are trained: TP within a node, more pipeline stages the larger the cluster.
LAYOUTS = (
    Layout(8, 1, 1),
    Layout(64, 8, 1),
    Layout(512, 8, 4),
    Layout(4096, 8, 8),
    Layout(16384, 8, 16),
)


@dataclass(frozen=True)
class Network:
    """A tree of point-to-point messages (α-β model).

    Assumed, not measured: α of a GPU cluster's small messages between nodes, host included, and β
    of one 200 Gb/s link at four fifths.

    Attributes:
        latency_us: α, of one hop.
        bytes_per_us: β.
    """

    latency_us: float = 15.0
    bytes_per_us: float = 20_000.0

    def all_reduce_us(self, ranks: int, size: int) -> float:
        """A tree up and down; the links are used once in each direction."""
        hops = math.ceil(math.log2(ranks)) if ranks > 1 else 0
        return 2 * (hops * self.latency_us + (size / self.bytes_per_us if hops else 0))

    def broadcast_us(self, ranks: int, size: int) -> float:
        """A tree down."""
        hops = math.ceil(math.log2(ranks)) if ranks > 1 else 0
        return hops * self.latency_us + (size / self.bytes_per_us if hops else 0)


LAUNCH_US = 2.1  # cuLaunchKernel through cuda-bindings, docs/kernels.md


def step_us(
    layout: Layout, pieces: dict[str, float], network: Network, microbatches: int
) -> dict[str, float]:
    """What a step takes more on a rank of the last stage that counts, in its parts.

    An upper bound: nothing is taken to overlap with anything.
    """
    size = int(pieces["payload_bytes"])
    launches = 1 + bool(pieces["weighted"])
    return {
        "microbatches": microbatches * (pieces["microbatch_us"] + launches * LAUNCH_US),
        "end of step": pieces["step_us"],
        "all-reduce": network.all_reduce_us(layout.dp_cp, size),
        "broadcast": network.broadcast_us(layout.tensor * layout.pipeline, size),
    }


def lock_step(ranks: int, microbatches: int, jitter: float, draws: int = 200) -> float:
    """How much longer a step is where ranks wait for each other in every microbatch, not once.

    Every microbatch of every rank takes 1 ± ``jitter`` (normal). With one collective a step the
    slowest sum counts, with one a microbatch the sum of the slowest.

    Returns:
        The ratio of the two, minus 1.
    """
    rng = np.random.default_rng(0)
    once = every = 0.0
    for _ in range(draws):
        times = 1 + jitter * rng.standard_normal((microbatches, ranks), dtype=np.float32)
        once += float(times.sum(0).max())
        every += float(times.max(1).sum())
    return every / once - 1
