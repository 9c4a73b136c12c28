"""Where training stands after a step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Moment:
    """Where training stands after a step.

    Attributes:
        iteration: number of the step, from 1.
        consumed_samples: samples consumed by then, as the host counts them.
        log, scalars: whether the host prints a line / writes scalars at this step.
        microbatches: how many the step had per data-parallel rank.
        batch_tokens: tokens that the step's global batch has room for; they set the default EMA
            horizon, where reweighting has no other.
        skipped: the optimizer skipped the update.
    """

    iteration: int
    consumed_samples: int
    log: bool
    scalars: bool
    microbatches: int
    batch_tokens: int = 0
    skipped: bool = False
