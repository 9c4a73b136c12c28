"""``excess``: weights that climb where the loss is above what it could be."""

from __future__ import annotations

from typing import Any

import numpy as np
from typing_extensions import Self

from domain_pretrain.rules.options import Fraction, Options, Positive
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.exponentiated import ascend
from domain_pretrain.strategies.observation import Array, Observation
from domain_pretrain.strategies.reference import Reference, resolve
from domain_pretrain.strategies.registry import register


class ExcessOptions(Options):
    """Options of ``excess``.

    Attributes:
        reference: the losses to compare with: nats by domain, or the path of a baseline run's
            ``domain_metrics.jsonl``, whose last tenth is taken.
        step_size: η.
        smoothing: c.
        clip_at_zero: whether a domain below its reference counts as on it.
    """

    reference: Reference
    step_size: Positive = 0.1
    smoothing: Fraction = 1e-3
    clip_at_zero: bool = True

    def bind(self, names: tuple[str, ...], where: str) -> Self:
        """Every domain needs a reference loss."""
        losses: Any = resolve(self.reference, names, f"{where}.reference")
        return self.model_copy(update={"reference": losses})


@register("excess", ExcessOptions)
def excess(seen: Observation, state: State, options: ExcessOptions) -> tuple[Array, State]:
    """``λ_d = max(L_d − L_ref,d, 0)``; ``α ← (1−c)·softmax(log α + η·λ) + c/K``.

    What cannot be learnt has a high reference too, so noise does not attract weight.

    Source: DoReMi, Xie et al., NeurIPS 2023 (arXiv:2305.10429) and its code (η 1, c 1e-3…1e-4,
    excess clipped per token, weights averaged over a proxy run); Sheared LLaMA, Xia et al., ICLR
    2024 (arXiv:2310.06694) and its code (η 1, c 1e-4, per evaluation, not clipped at 0). Here once
    per optimizer step, on the EMA, clipped per domain. Default η 0.1: at η 1 a constant excess
    of 0.1 nats multiplies a weight by e in 10 steps, while the effect on the loss takes hundreds.
    DoReMi's loss normalises by the sum of the weights over tokens: ``token_share``.
    """
    reference = np.array([options.reference[name] for name in seen.names])
    gap = (seen.loss - reference)[seen.active]
    if options.clip_at_zero:
        gap = np.maximum(gap, 0.0)
    return ascend(seen, state, options.step_size * gap, options.smoothing)
