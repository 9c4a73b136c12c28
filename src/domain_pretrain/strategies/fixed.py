"""Weights that do not depend on the losses: ``uniform`` and ``static``."""

from __future__ import annotations

import numpy as np
from typing_extensions import Self

from domain_pretrain.rules.options import Options, Positive, check_domains
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.observation import Array, Observation
from domain_pretrain.strategies.registry import register


@register("uniform")
def uniform(seen: Observation, state: State, options: Options) -> tuple[Array, State]:
    """``w_d = 1/K``. The baseline.

    Under ``token_share`` every multiplier is exactly 1: training is the host's, bit for bit. Under
    ``domain_mean`` every domain counts the same, however few its tokens.
    """
    return seen.uniform(), state


class StaticOptions(Options):
    """Options of ``static``."""

    weights: dict[str, Positive]

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """Every domain needs a weight."""
        check_domains(f"{where}.weights", self.weights, names, complete=True)
        return self


@register("static", StaticOptions)
def static(seen: Observation, state: State, options: StaticOptions) -> tuple[Array, State]:
    """``w_d ∝ weights[d]``, fixed. The control that a dynamic rule has to beat.

    Under ``domain_mean`` the multiplier is w_d over the token share q_d, so that training agrees in
    expectation with sampling the domains in the ratio w, while the order of the data stays. Under
    ``token_share`` the weights are relative multipliers: give the average multipliers of a dynamic
    run here to learn whether its dynamics did anything.
    """
    return seen.weights(np.array([options.weights[n] for n in seen.names])[seen.active]), state
