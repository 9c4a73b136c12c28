"""Weights by where a domain's loss lies between the lowest and the highest: three shapes.

Source: Sow et al., ICLR 2025 (arXiv:2502.06733), per sample of a batch; here per domain, on the EMA
of its loss. The formulas are in shapes.py: ``w = softmax(shape(h) / temperature)``.
"""

from __future__ import annotations

import numpy as np

from domain_pretrain.rules.state import State
from domain_pretrain.strategies import shapes
from domain_pretrain.strategies.observation import Array, Observation
from domain_pretrain.strategies.registry import register
from domain_pretrain.strategies.shapes import ShapeOptions


def shape_weights(seen: Observation, shape: shapes.Shape, temperature: float) -> Array:
    """``softmax(shape(h) / temperature)`` over the active domains; ``[D]``."""
    loss = seen.loss[seen.active]
    score = shape(shapes.normalised(loss, loss.min(), loss.max()))
    return seen.weights(np.exp((score - score.max()) / temperature))


@register("linupper", ShapeOptions)
def linupper(seen: Observation, state: State, options: ShapeOptions) -> tuple[Array, State]:
    """``w = softmax(min(h + 1, 1) / r)``: less weight for what is learnt already.

    Domains in the upper half of the range share the highest weight, so the hardest one (which may
    be noise) gains nothing over the middle. Default r = 1: between two domains at most e = 2.7 : 1.
    """
    return shape_weights(seen, shapes.linupper, options.temperature.at(seen.step)), state


@register("quadratic", ShapeOptions)
def quadratic(seen: Observation, state: State, options: ShapeOptions) -> tuple[Array, State]:
    """``w = softmax((1 − h²) / r)``: less weight for the easiest and the hardest. Default r = 1."""
    return shape_weights(seen, shapes.quadratic, options.temperature.at(seen.step)), state


@register("extremes", ShapeOptions)
def extremes(seen: Observation, state: State, options: ShapeOptions) -> tuple[Array, State]:
    """``w = softmax(|h| / r)``: more weight for the easiest and the hardest. Default r = 1."""
    return shape_weights(seen, shapes.extremes, options.temperature.at(seen.step)), state
