"""The strategies by name, and one of them set up for a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from domain_pretrain.errors import IntegrityError
from domain_pretrain.rules.registry import Configured, Registry
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.observation import Array, Observation

# (what was observed, what the rule kept, its options) → (weights [D], what it keeps).
# A pure function: it never writes into what it is given. See Observation.weights for the weights.
Rule = Callable[[Observation, State, Any], tuple[Array, State]]

STRATEGIES: Registry[Rule] = Registry("strategy", "domain_pretrain.strategies")
register = STRATEGIES.register
available = STRATEGIES.available


@dataclass(frozen=True)
class Strategy(Configured[Rule]):
    """A rule with its options, ready for use."""

    def __call__(self, seen: Observation, state: State) -> tuple[Array, State]:
        """Weights ``[D]``, a distribution over the active domains, and the state to keep.

        Without an active domain the weights are zero and the rule is not asked.

        Raises:
            IntegrityError: the rule gave something else.
        """
        if not seen.active.any():
            return np.zeros(len(seen.names)), state
        weights, state = self.rule(seen, state, self.options)
        if not (
            weights.shape == seen.active.shape
            and bool((weights >= 0).all())  # NaN fails too
            and not weights[~seen.active].any()
            and abs(weights.sum() - 1) < 1e-9
        ):
            raise IntegrityError(
                f"strategy {self.name!r} gave weights that are no distribution over the "
                f"{int(seen.active.sum())} active domains: {weights}"
            )
        return weights, state


def build(
    name: str,
    given: Mapping[str, Any],
    names: tuple[str, ...],
    *,
    where: str = "reweight",
    also: tuple[str, ...] = (),
) -> Strategy:
    """A strategy with its options, checked for these domains: see :meth:`.Registry.build`."""
    found = STRATEGIES.build(name, given, names, key=f"{where}.strategy", where=where, also=also)
    return Strategy(found.name, found.rule, found.options)
