"""Where training stands after a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from domain_pretrain.strategies.course import Course


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
        course: how far the run is, as far as the host tells; without an evaluation.
        host: what else the host tells of the step, by name: ``learning_rate``, ``grad_norm``. Where
            it logs or writes scalars; numbers that it has, for which no device is asked, and with
            ``--qk-clip`` the ``max_attention_logit``.
    """

    iteration: int
    consumed_samples: int
    log: bool
    scalars: bool
    microbatches: int
    batch_tokens: int = 0
    skipped: bool = False
    course: Course = field(default_factory=Course)
    host: Mapping[str, float] = field(default_factory=dict)
