"""Which part of the samples each domain has by plan, between two points of the stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from domain_pretrain.data.mix.apportion import Shape
from domain_pretrain.data.mix.plan import Plan, Stage

_WAY: Mapping[Shape, Callable[[float], float]] = {
    "constant": lambda part: 1.0,
    "linear": lambda part: part,
    "cosine": lambda part: (1 - math.cos(math.pi * part)) / 2,
}


def planned_shares(
    plan: Plan,
    sizes: Sequence[float] | None,
    owners: Sequence[str],
    names: Sequence[str],
    first: int,
    stop: int,
) -> dict[str, float]:
    """Of the samples that a run consumes from ``first`` up to, without, ``stop``.

    Between the two, weights that change are taken as they are halfway.

    Args:
        plan: of the stream; not one that the losses decide.
        sizes: of each of its prefixes, where the blend has no weights.
        owners: whose each of them is.
        names: the domains that are asked for.

    Returns:
        Of those domains that have a part in it; empty where that is not known.
    """
    begin, end = plan.position(first), plan.passed(stop)
    starts = [*plan.starts(), math.inf]
    weights = [0.0] * len(plan.prefixes)
    for number, stage in enumerate(plan.stages):
        low, high = max(begin, starts[number]), min(end, starts[number + 1])
        if low >= high:
            continue
        shares = _shares(stage, sizes)
        if shares is None:
            return {}
        if number and stage.samples:
            before = _shares(plan.stages[number - 1], sizes) or shares
            part = _WAY[stage.shape](((low + high) / 2 - starts[number]) / stage.samples)
            shares = [old + part * (new - old) for old, new in zip(before, shares, strict=True)]
        weights = [sum_ + (high - low) * one for sum_, one in zip(weights, shares, strict=True)]
    total = math.fsum(weights)
    found = dict.fromkeys(names, 0.0)
    for name, weight in zip(owners, weights, strict=True):
        if name in found and total:
            found[name] += weight / total
    return {name: share for name, share in found.items() if share}


def _shares(stage: Stage, sizes: Sequence[float] | None) -> list[float] | None:
    weights = sizes if stage.weights is None else stage.weights
    if weights is None:
        return None
    total = math.fsum(weights)
    return [weight / total for weight in weights]
