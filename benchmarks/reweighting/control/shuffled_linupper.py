"""``shuffled_linupper``: a control that keeps the spread of linupper's weights, not their meaning.

A third party's strategy: this folder is on the path of the runs, and the ``.dist-info`` beside this
file names it as an entry point, as an installed package would.
"""

from __future__ import annotations

import numpy as np

from domain_pretrain.rules.options import Positive
from domain_pretrain.rules.state import State
from domain_pretrain.strategies import Options, register
from domain_pretrain.strategies.loss_shape import shape_weights
from domain_pretrain.strategies.observation import Array, Observation
from domain_pretrain.strategies.shapes import linupper


class ShuffledOptions(Options):
    """Options of ``shuffled_linupper``.

    Attributes:
        shift: the weight of the i-th active domain goes to number i + shift, around the end.
        temperature: as linupper's.
    """

    shift: int = 1
    temperature: Positive = 1.0


@register("shuffled_linupper", ShuffledOptions)
def shuffled_linupper(
    seen: Observation, state: State, options: ShuffledOptions
) -> tuple[Array, State]:
    """The weights that linupper gives now, each to a wrong domain."""
    weights = shape_weights(seen, linupper, options.temperature)
    return seen.weights(np.roll(weights[seen.active], options.shift)), state
