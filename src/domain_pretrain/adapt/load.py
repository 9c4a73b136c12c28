"""What the load of experts says of a domain: numbers from counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.records.record import Experts

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


def shares(load: Counts) -> Floats:
    """Each expert's part of ``[…, experts]`` choices; NaN where there are none."""
    total = load.sum(axis=-1, keepdims=True)
    return np.divide(load, total, out=np.full(load.shape, np.nan), where=total > 0)


def entropy(load: Counts) -> Floats:
    """Entropy of ``[…, experts]`` choices, nats: ln E where all get the same, 0 where one does."""
    parts = shares(load)
    logs = np.log(parts, out=np.zeros_like(parts), where=parts > 0)
    found: Floats = -(parts * logs).sum(axis=-1)
    return found


def summary(load: Counts, tokens: Counts, router: Floats) -> dict[str, float]:
    """Of one domain, or of all together: means over the layers.

    ``entropy`` of its load as a part of the largest possible; ``load``, how many times its even
    part the busiest expert gets; ``used``, how many experts of equal load have that entropy;
    ``router``, how unsure the routers are of a token, as a part of the largest possible.

    Args:
        load: ``[layers, experts]``, choices.
        tokens: ``[layers]``.
        router: ``[layers]``, Σ of the tokens' entropy, nats.
    """
    experts = load.shape[-1]
    most = math.log(experts) if experts > 1 else 1.0
    nats = entropy(load)
    return {
        "entropy": float(np.mean(nats) / most),
        "load": float(np.mean(shares(load).max(axis=-1)) * experts),
        "used": float(np.mean(np.exp(nats))),
        "router": float(np.mean(router / tokens) / most),
    }


def describe(
    names: Sequence[str],
    layers: Sequence[int],
    topk: int,
    load: Counts,
    tokens: Counts,
    router: Floats,
) -> Experts:
    """What is published of a step.

    Args:
        names: the domains.
        layers: their numbers, from 1.
        topk: experts that a token is given to.
        load: ``[layers, domains, experts]``.
        tokens: ``[layers, domains]``.
        router: ``[layers, domains]``, nats.
    """
    there = [row for row in range(len(names)) if (load[:, row].sum(axis=-1) > 0).all()]
    return Experts(
        layers=tuple(layers),
        topk=topk,
        load=load,
        overall=summary(load.sum(axis=1), tokens.sum(axis=1), router.sum(axis=1)),
        domains={
            names[row]: summary(load[:, row], tokens[:, row], router[:, row]) for row in there
        },
    )
