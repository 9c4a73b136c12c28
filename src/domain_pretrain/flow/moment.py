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
        skipped: the optimizer skipped the update.
    """

    iteration: int
    consumed_samples: int
    log: bool
    scalars: bool
    microbatches: int
    skipped: bool = False
