"""What the multipliers do to a step, in a few numbers for the log."""

from __future__ import annotations

from dataclasses import dataclass

from domain_pretrain.strategies.multipliers import Bounds
from domain_pretrain.strategies.observation import Array


@dataclass(frozen=True)
class Diagnostics:
    """How strong the weights are, and how often a bound cut them.

    Attributes:
        effective_domains: ``1 / Σ w²``: K when the K weights are equal, 1 when one has all.
        effective_tokens: ``(Σ n·m)² / (Σ n · Σ n·m²)``, in (0, 1]: the part of the step's tokens
            that, unweighted, would give a gradient as noisy as this one.
        clip_rate: part of the weighed domains whose multiplier is at a bound.
    """

    effective_domains: float
    effective_tokens: float
    clip_rate: float


def diagnose(weights: Array, multipliers: Array, tokens: Array, bounds: Bounds) -> Diagnostics:
    """Diagnostics of a step or window.

    Args:
        weights: ``[D]``, 0 for domains that are not weighed.
        multipliers: ``[D]``, those in force during the step.
        tokens: ``[D]``, of the step.
        bounds: that the multipliers were held in.

    Returns:
        Without any tokens, ``effective_tokens`` is 1; without any weights, ``effective_domains``
        and ``clip_rate`` are 0.
    """
    weighed = weights > 0
    at_bound = (multipliers <= bounds.low) | (multipliers >= bounds.high)
    mass = tokens * multipliers
    squares = tokens.sum() * (mass * multipliers).sum()
    return Diagnostics(
        effective_domains=float(1 / (weights**2).sum()) if weighed.any() else 0.0,
        effective_tokens=float(mass.sum() ** 2 / squares) if squares > 0 else 1.0,
        clip_rate=float(at_bound[weighed].mean()) if weighed.any() else 0.0,
    )
