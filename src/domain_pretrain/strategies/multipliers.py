"""A rule's weights → the multipliers on per-token losses, with Σ share·m = 1 inside the bounds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field
from pydantic.types import Strict

from domain_pretrain.errors import ConfigError
from domain_pretrain.rules.options import Fraction, Options, Steps, check_domains
from domain_pretrain.strategies.observation import Array, Mask

Objective = Annotated[
    Literal["token_share", "domain_mean"],
    Field(description="What equal weights mean: every token counts the same, or every domain."),
]
WarmupSteps = Annotated[
    Steps, Field(description="First optimizer steps, in which every multiplier is exactly 1.")
]

# Weights that differ by more count as if they differed by this much: any bound stays reachable.
LARGEST_RATIO = 1e12


def _around_one(clip: tuple[float, float]) -> tuple[float, float]:
    if not clip[0] <= 1 <= clip[1]:
        raise ValueError("clip should be [low, high] with 0 <= low <= 1 <= high")
    return clip


Bound = Annotated[float, Strict(), Field(ge=0)]
Clip = Annotated[tuple[Bound, Bound], AfterValidator(_around_one)]


class MultiplierOptions(Options):
    """How weights become multipliers.

    ``token_share``: m_d ∝ w_d; equal weights are the host's own loss, exactly. ``domain_mean``:
    m_d ∝ w_d/share_d, the loss Σ w_d·L_d of domain means; with equal weights each domain counts the
    same. After the warm-up the weights hold in full at once; a temperature schedule starts there,
    for a soft start.
    """

    renamed: ClassVar[Mapping[str, str]] = {"blend": "uniform_part"}

    objective: Objective = "token_share"
    warmup_steps: WarmupSteps = 200
    uniform_part: Fraction = Field(
        default=0.01, description="Part of the uniform weights that is mixed in."
    )
    clip: Clip = Field(default=(0.2, 3.0), description="Smallest and largest multiplier, around 1.")


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest multiplier of every domain, ``[D]``; ``low <= 1 <= high``.

    One is always inside, so multipliers with Σ share·m = 1 exist whatever the shares are. A pinned
    domain has ``low = high = 1``.
    """

    low: Array
    high: Array

    @classmethod
    def build(
        cls,
        names: tuple[str, ...],
        clip: tuple[float, float],
        pinned: Collection[str] = (),
        floor: Mapping[str, float] | None = None,
    ) -> Bounds:
        """The bounds of these domains.

        Args:
            names: the domains.
            clip: bounds of every domain.
            pinned: domains whose multiplier is always exactly 1.
            floor: higher smallest multipliers, by domain; in [0, 1].

        Raises:
            ConfigError: a name that is no domain; a floor above 1, which could not be kept.
        """
        floor = floor or {}
        check_domains("pinned", dict.fromkeys(pinned), names, complete=False)
        check_domains("floor", floor, names, complete=False)
        for name, value in floor.items():
            if not 0 <= value <= 1:
                raise ConfigError(
                    f"floor of domain {name!r}: must be between 0 and 1, got {value!r}; a floor "
                    "above 1 cannot be kept when the domain is nearly all of the data"
                )
        low = np.array([max(clip[0], floor.get(name, 0.0)) for name in names])
        high = np.full(len(names), float(clip[1]))
        for name in pinned:
            low[names.index(name)] = high[names.index(name)] = 1.0
        return cls(low, high)


def mixed(weights: Array, active: Mask, uniform_part: float) -> Array:
    """``(1 − u)·w + u/K`` over the K active domains, u being ``uniform_part``; ``[D]``."""
    count = max(int(active.sum()), 1)
    return np.where(active, (1 - uniform_part) * weights + uniform_part / count, 0.0)


def multipliers(
    weights: Array, active: Mask, share: Array, bounds: Bounds, objective: Objective
) -> Array:
    """Multipliers on the per-token losses of the next step.

    Args:
        weights: ``[D]``, distribution over the active domains.
        active: bool ``[D]``, domains that are weighed; the others (pinned, never seen) have 1.
        share: ``[D]``, expected part of the tokens of each domain, Σ = 1.
        bounds: of the multipliers.
        objective: see :class:`MultiplierOptions`.

    Returns:
        ``[D]`` with Σ share·m = 1 and ``low <= m <= high``. Exactly ones where the objective leaves
        nothing to change: equal weights under ``token_share``, one active domain.
    """
    result = np.ones_like(share)
    tilt, share = weights[active], share[active]
    if objective == "domain_mean":
        tilt = tilt / np.maximum(share, 1 / LARGEST_RATIO)
    if tilt.size and tilt.max() > tilt.min() and share.sum() > 0:
        tilt = np.maximum(tilt / tilt.max(), 1 / LARGEST_RATIO)
        result[active] = _scaled(tilt, share, bounds.low[active], bounds.high[active])
    return result


def _scaled(tilt: Array, share: Array, low: Array, high: Array) -> Array:
    """``clip(c·tilt, low, high)`` with the c that makes Σ share·m = Σ share.

    The sum rises with c, piecewise linearly, from Σ share·low to Σ share·high, and Σ share lies
    between them. So the piece is found by bisection, and c on it by division: the fixed point of
    "renormalise, clip, renormalise …" without iterating.
    """

    def clipped(c: float) -> Array:
        return np.clip(c * tilt, low, high)

    def total(c: float) -> float:
        return float(share @ clipped(c))

    target = float(share.sum())
    knots = np.unique(np.concatenate([low / tilt, high / tilt])).tolist()
    after = bisect_left(knots, target, key=total)
    if after == 0 or after == len(knots):  # every domain is at a bound
        return clipped(knots[min(after, len(knots) - 1)])
    middle = clipped((knots[after - 1] + knots[after]) / 2)
    free = (low < middle) & (middle < high)
    weight = float(share[free] @ tilt[free])
    if weight == 0:  # a level piece: only domains without tokens move on it
        return clipped(knots[after])
    return clipped((target - float(share[~free] @ middle[~free])) / weight)
