"""``group_dro``: weights that climb where the loss is high."""

from __future__ import annotations

import numpy as np

from domain_pretrain.rules.options import Fraction, NonNegative, Options, Positive
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.exponentiated import ascend
from domain_pretrain.strategies.observation import Array, Observation
from domain_pretrain.strategies.registry import register


class GroupDroOptions(Options):
    """Options of ``group_dro``.

    Attributes:
        step_size: η.
        adjustment: C; favours domains with few tokens, which are easily overfitted.
        smoothing: c; the published rule has 0 (see exponentiated.py).
    """

    step_size: Positive = 0.01
    adjustment: NonNegative = 0.0
    smoothing: Fraction = 1e-3


@register("group_dro", GroupDroOptions)
def group_dro(seen: Observation, state: State, options: GroupDroOptions) -> tuple[Array, State]:
    """``q_d ← q_d·exp(η·(L_d + C/√n_d))``, normalised; n_d: the domain's tokens so far.

    Minimises the worst domain's loss in the long run; so it climbs for ever on the domain with the
    highest loss, whether that loss can fall or not.

    Source: Sagawa et al., "Distributionally Robust Neural Networks for Group Shifts", ICLR 2020
    (arXiv:1911.08731) and its code, which takes the batch's losses and counts an absent group as
    loss 0; here L is the EMA, and absent domains keep theirs. Published with the objective Σ q·L:
    ``domain_mean``. Defaults: η 0.01 and C 0 as published, c 1e-3.
    """
    loss = seen.loss + options.adjustment / np.sqrt(np.maximum(seen.tokens, 1.0))
    return ascend(seen, state, options.step_size * loss[seen.active], options.smoothing)
