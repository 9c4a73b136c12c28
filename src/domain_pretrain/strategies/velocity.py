"""``velocity``: weights that climb where the way to the target is still long."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import Self

from domain_pretrain.rules.options import Fraction, Options, Positive
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.exponentiated import ascend
from domain_pretrain.strategies.observation import Array, Observation, known
from domain_pretrain.strategies.reference import Reference, resolve
from domain_pretrain.strategies.registry import register
from domain_pretrain.strategies.shapes import SMALLEST_RANGE


class VelocityOptions(Options):
    """Options of ``velocity``.

    Attributes:
        target: losses aimed at: nats by domain, or the path of a run's ``domain_metrics.jsonl``.
        initial: losses before training, in the same two forms; None: a domain's first estimate.
        step_size: η.
        smoothing: c.
    """

    target: Reference
    initial: Reference | None = None
    step_size: Positive = 0.01
    smoothing: Fraction = 1e-3

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """Every domain needs a target, and an initial loss where any has one."""
        update: dict[str, Any] = {"target": resolve(self.target, names, f"{where}.target")}
        if self.initial is not None:
            update["initial"] = resolve(self.initial, names, f"{where}.initial")
        return self.model_copy(update=update)


@register("velocity", VelocityOptions)
def velocity(seen: Observation, state: State, options: VelocityOptions) -> tuple[Array, State]:
    """``V_d = (L_d − L_target,d) / (L_init,d − L_target,d)``; ``w ← w·exp(η·V)``, normalised.

    V is the part of the way that is left: 1 at the start, 0 at the target. Below 0 it counts as 0;
    so does a domain that had no way to go. Relative progress, so domains of different loss compare.

    Source: Velocitune, Luo et al., ACL 2025 (arXiv:2411.14318), which has no published code: η 1,
    once per evaluation, targets extrapolated by a scaling law. Here once per optimizer step, on
    the EMA, with η 0.01 (an evaluation each 100 steps) and c 1e-3 (not in the paper).
    """
    if options.initial is not None:
        initial = np.array([options.initial[name] for name in seen.names])
    else:
        initial = known(state, "initial", seen.loss)
        initial = np.where(np.isnan(initial), seen.loss, initial)
        state = {**state, "initial": initial}
    target = np.array([options.target[name] for name in seen.names])
    way, left = (initial - target)[seen.active], (seen.loss - target)[seen.active]
    rate = np.divide(left, way, out=np.zeros_like(way), where=way > SMALLEST_RANGE)
    return ascend(seen, state, options.step_size * np.maximum(rate, 0.0), options.smoothing)
