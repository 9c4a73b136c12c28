"""A rule's weights → the multipliers on per-token losses, with Σ share·m = 1 inside the bounds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import AfterValidator, Field

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

# Between these the scale is held at which a domain's multiplier is 1: the smallest is that of a
# domain without tokens, the largest that of one without weight, for every bound to be in reach.
# Absolute and far out, so that no domain's number changes how the others compare.
SMALLEST_UNIT, LARGEST_UNIT = 1e-300, 1e100


def _around_one(clip: tuple[float, float]) -> tuple[float, float]:
    low, high = clip
    if low == 1 or high == 1:
        raise ValueError(
            "with a bound of exactly 1 every multiplier is 1, since their mean over the tokens is: "
            "give [low, high] with low < 1 < high, or take reweight out"
        )
    if not low < 1 < high:
        raise ValueError("should be [low, high] with 0 <= low < 1 < high")
    return clip


# What is weighed is fp32, which holds no multiplier much above.
Bound = Annotated[float, Field(ge=0, le=1e30)]
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

    ``m = clip(c·w/base, low, high)``, where base is the share for ``domain_mean`` and 1 for
    ``token_share``, with the c that makes Σ share·m what it is without weights. A domain whose
    share fades away ends at a bound, and moves the others by no more than its part of that sum.

    Args:
        weights: ``[D]``, distribution over the active domains.
        active: bool ``[D]``, domains that are weighed; the others (pinned, never seen) have 1.
        share: ``[D]``, expected part of the tokens of each domain, Σ = 1; may be 0.
        bounds: of the multipliers.
        objective: see :class:`MultiplierOptions`.

    Returns:
        ``[D]`` with Σ share·m = 1 and ``low <= m <= high``. Exactly ones where the objective leaves
        nothing to change: equal weights under ``token_share``, one active domain.
    """
    result = np.ones(share.shape)
    weights, share = weights[active], share[active]
    base = share if objective == "domain_mean" else np.ones(share.shape)
    unit = np.full(base.shape, LARGEST_UNIT)
    np.divide(base, weights, out=unit, where=weights > SMALLEST_UNIT)  # so that none overflows
    unit = np.clip(unit, SMALLEST_UNIT, LARGEST_UNIT)
    if share.any() and unit.max() > unit.min():
        result[active] = _scaled(unit, share, bounds.low[active], bounds.high[active])
    return result


def _scaled(unit: Array, share: Array, low: Array, high: Array) -> Array:
    """``clip(c/unit, low, high)`` with the c that makes Σ share·m = Σ share.

    The sum rises with c, piecewise linearly, from Σ share·low to Σ share·high, and Σ share lies
    between them. It bends where a domain leaves or reaches a bound: bisection finds the bends
    around Σ share, and a straight line between them the c, which so never leaves its piece. It is
    the fixed point of "renormalise, clip, renormalise …" without iterating.
    """
    leaves, reaches = unit * low, unit * high

    def clipped(c: float) -> Array:
        # Cut first, so that no quotient overflows; at a bend the bound itself, not nearly.
        between = np.clip(np.minimum(c, reaches) / unit, low, high)
        return np.where(c <= leaves, low, np.where(c < reaches, between, high))

    def total(c: float) -> float:
        return float(share @ clipped(c))

    target = float(share.sum())
    bends = np.sort(np.concatenate([leaves, reaches])).tolist()
    after = bisect_left(bends, target, key=total)
    # Beyond the first or the last bend, by rounding, every domain is at a bound.
    around = bends[max(after - 1, 0)], bends[min(after, len(bends) - 1)]
    return clipped(float(np.interp(target, [total(c) for c in around], around)))
