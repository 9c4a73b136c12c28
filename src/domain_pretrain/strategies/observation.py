"""What a rule may look at, once per optimizer step, and the form of what it gives back."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.errors import IntegrityError
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.course import Course

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Observation:
    """The domains as they stand after an optimizer step; float64, identical on all ranks.

    Attributes:
        names: the D domain names, in the order of all arrays.
        step: optimizer steps done since the warm-up ended, the last of which was just measured;
            0 right after its last step, negative before. The weights are for the step after.
        active: bool ``[D]``, the domains that the rule weighs: seen at least once, and not pinned.
        loss: ``[D]`` nats, estimate (EMA) of the loss; NaN where never seen.
        present: bool ``[D]``, the domains with (finite) tokens in this very step.
        step_loss: ``[D]`` nats, mean over this step's tokens; NaN where not present.
        tokens: ``[D]``, loss tokens trained on so far.
        share: ``[D]``, expected part of the tokens of each domain without weights, or of the blend
            where a rule decides what is sampled; Σ = 1 over all domains once tokens were seen.
        course: how far the run is.
        weighed_tokens: ``[D]``, those of this step, times the multipliers that their losses had.
    """

    names: tuple[str, ...]
    step: int
    active: Mask
    loss: Array
    present: Mask
    step_loss: Array
    tokens: Array
    share: Array = field(default_factory=lambda: np.zeros(0))
    course: Course = field(default_factory=Course)
    weighed_tokens: Array = field(default_factory=lambda: np.zeros(0))

    @property
    def warming(self) -> bool:
        """Whether multipliers are held at one: a rule measures, but does not move its weights."""
        return self.step < 0

    def weights(self, values: Array) -> Array:
        """``[D]`` distribution from non-negative values ``[K]`` of the K active domains.

        Equal values, all zeros among them, give exactly 1/K each; inactive domains have 0.

        Raises:
            IntegrityError: a value is negative or not finite.
        """
        if not ((values >= 0) & (values < np.inf)).all():
            raise IntegrityError(f"weights cannot be made of {values}: negative or not finite")
        weights = np.zeros(len(self.names))
        if values.size:
            # Division by the largest first: the sum of huge or tiny values stays in range.
            values = values / values.max() if values.any() else np.ones_like(values)
            weights[self.active] = values / values.sum()
        return weights

    def uniform(self) -> Array:
        """``[D]``: 1/K for each of the K active domains."""
        return self.weights(np.ones(int(self.active.sum())))


def known(state: State, key: str, like: Array) -> Array:
    """A copy of ``state[key]``, or an array of NaN ("nothing known") in the shape of ``like``."""
    return np.array(state[key]) if key in state else np.full_like(like, np.nan)
