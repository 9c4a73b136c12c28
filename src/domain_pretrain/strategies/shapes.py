"""Loss → score: the normalisation and the three shapes of loss-based reweighting.

Written with operators and methods that numpy arrays and torch tensors share, so that the rule that
runs lagged on the host and the one that runs on the device within a microbatch are the same lines.

Source: Sow et al., "Dynamic Loss-Based Sample Reweighting for Improved Large Language Model
Pretraining", ICLR 2025 (arXiv:2502.06733), there per sample; here per domain too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from domain_pretrain.rules.options import Options
from domain_pretrain.strategies.temperature import CONSTANT_ONE, TemperatureOption

# Losses closer together than this (nats) do not differ: everything above it is divided by a range
# that small, which would turn rounding into full-strength weights.
SMALLEST_RANGE = 1e-6

Shape = Callable[[Any], Any]


def normalised(loss: Any, lowest: Any, highest: Any) -> Any:
    """``h = (2·loss − (highest + lowest)) / (highest − lowest)``, in [−1, 1]; 0 where all agree.

    Args:
        loss: ``[K]``, nats.
        lowest: scalar (0-d), the smallest of the losses compared.
        highest: scalar (0-d), the largest.
    """
    spread = highest - lowest
    h = (2 * loss - (highest + lowest)) / spread.clip(min=SMALLEST_RANGE)
    return h * (spread >= SMALLEST_RANGE)


def linupper(h: Any) -> Any:
    """``min(h + 1, 1)``: rises up to the middle of the range, then flat."""
    return (h + 1).clip(max=1)


def quadratic(h: Any) -> Any:
    """``1 − h²``: favours the middle."""
    return 1 - h * h


def extremes(h: Any) -> Any:
    """``|h|``: favours both ends."""
    return abs(h)


SHAPES: dict[str, Shape] = {"linupper": linupper, "quadratic": quadratic, "extremes": extremes}


class ShapeOptions(Options):
    """Options of every shape, in either scope.

    Attributes:
        temperature: r of ``softmax(shape(h) / r)``: the largest weight is at most e^(1/r) times the
            smallest.
    """

    temperature: TemperatureOption = CONSTANT_ONE
