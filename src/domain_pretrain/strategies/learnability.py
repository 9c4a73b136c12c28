"""``learnability``: weights by how fast a power law says the loss still falls."""

from __future__ import annotations

import numpy as np

from domain_pretrain.rules.options import Fraction, Options, Steps
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.observation import Array, Observation, known
from domain_pretrain.strategies.registry import register

# Exponents that are tried. Below 0.05 a power law cannot be told from a constant in one run, above
# 0.8 the fit follows the first steps; the same limits as in the source.
EXPONENTS = np.arange(1, 17) * 0.05
# Running moments per domain and exponent, last axis: count, mean of x, mean of y, and the sums of
# (x − mean)², (x − mean)(y − mean), (y − mean)².


class LearnabilityOptions(Options):
    """Options of ``learnability``.

    Attributes:
        ignore_steps: first steps of a domain left out of its fit (the loss falls there for other
            reasons: learning-rate warm-up, token frequencies).
        fit_steps: steps in a domain's fit before it is used.
        smoothing: weight of the average over time against the newest value.
    """

    ignore_steps: Steps = 500
    fit_steps: Steps = 500
    smoothing: Fraction = 0.9


@register("learnability", LearnabilityOptions)
def learnability(
    seen: Observation, state: State, options: LearnabilityOptions
) -> tuple[Array, State]:
    """``L_d(n) = e_d + b_d·n^(−a_d)`` fitted online; ``w_d ∝ a_d·(L_d(n) − e_d)/n = −dL_d/dn``.

    n is the number of tokens of all domains; a ∈ {0.05, 0.10 … 0.80}, e ≥ 0, b ≥ 0. For a fixed
    exponent the law is linear in x = n^(−a), so running moments give least squares over all
    steps without keeping them; the exponent with the least error wins.
    Then ``w ← s·w̄ + (1 − s)·w`` with w̄ the average over all steps so far. A domain whose loss
    rises has slope 0; one without enough steps has the mean slope of the others.

    Source: ADO, Jiang et al., "Adaptive Data Optimization", ICLR 2025 (arXiv:2410.11820) and
    its code: n common to all domains, a ≥ 0.05, s 0.9, start at step 1000. There the fit is
    Huber on logarithms every 1000 steps, and a credit √(p·(1−p)) of the recent share multiplies
    the slope; the prior that multiplies it there is the share that ``token_share`` implies.
    """
    shape = np.empty((len(seen.names), len(EXPONENTS), 6))
    moments = np.nan_to_num(known(state, "moments", shape))
    points = np.nan_to_num(known(state, "points", seen.loss)) + seen.present
    steps = state.get("steps", 0) + 1
    tokens = max(float(seen.tokens.sum()), 1.0)
    # An EMA lags; a fit averages by itself, so it takes the losses of the steps.
    taken = seen.present & (points > options.ignore_steps)
    moments[taken] = add_point(moments[taken], tokens, seen.step_loss[taken])
    state = {**state, "moments": moments, "points": points, "steps": steps}
    fitted = points[seen.active] >= options.ignore_steps + options.fit_steps
    if seen.warming or not fitted.any():
        return seen.uniform(), state

    slopes = slope(moments[seen.active], tokens)
    now = seen.weights(np.where(fitted, slopes, slopes[fitted].mean()))
    # The average starts uniform; that of a domain which joins later, at its first weight.
    start = now if "average" in state else seen.uniform()
    average = known(state, "average", seen.loss)
    average = np.where(seen.active & np.isnan(average), start, average)
    mixed = options.smoothing * average + (1 - options.smoothing) * now
    average = average + (now - average) / (steps + 1)
    return seen.weights(mixed[seen.active]), {**state, "average": average}


def add_point(moments: Array, tokens: float, loss: Array) -> Array:
    """Add one step's losses to running moments (Welford's update).

    Args:
        moments: ``[K, len(EXPONENTS), 6]``.
        tokens: n, of all domains.
        loss: ``[K]`` nats.
    """
    x, y = tokens**-EXPONENTS, loss[:, None]
    count, mean_x, mean_y, xx, xy, yy = np.moveaxis(moments, -1, 0)
    count = count + 1
    from_x, from_y = x - mean_x, y - mean_y
    mean_x, mean_y = mean_x + from_x / count, mean_y + from_y / count
    xx = xx + from_x * (x - mean_x)
    xy = xy + from_x * (y - mean_y)
    yy = yy + from_y * (y - mean_y)
    return np.stack([count, mean_x, mean_y, xx, xy, yy], axis=-1)


def slope(moments: Array, tokens: float) -> Array:
    """``[K]``: ``a·b·n^(−a)/n`` of the best law, nats per token, never negative."""
    count, mean_x, mean_y, xx, xy, yy = np.moveaxis(moments, -1, 0)
    b = np.maximum(np.divide(xy, xx, out=np.zeros_like(xx), where=xx > 0), 0.0)
    floor = mean_y - b * mean_x
    # Where the best line crosses zero below n = ∞, the best one through the origin.
    raw_xx, raw_xy = xx + count * mean_x**2, xy + count * mean_x * mean_y
    through = np.divide(raw_xy, raw_xx, out=np.zeros_like(xx), where=raw_xx > 0)
    b, floor = np.where(floor < 0, through, b), np.maximum(floor, 0.0)
    error = yy - 2 * b * xy + b**2 * xx + count * (mean_y - floor - b * mean_x) ** 2
    best = error.argmin(axis=1)
    a, b = EXPONENTS[best], b[np.arange(len(b)), best]
    return a * b * tokens**-a / tokens
