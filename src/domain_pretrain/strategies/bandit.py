"""``bandit``: the loss as the reward for choosing a domain."""

from __future__ import annotations

import math

import numpy as np

from domain_pretrain.rules.options import Fraction, Options
from domain_pretrain.rules.state import State
from domain_pretrain.strategies.observation import Array, Observation, known
from domain_pretrain.strategies.registry import register

LARGEST_LOSS = 100.0  # nats; exp() of it is finite, and no model in training is that bad


class BanditOptions(Options):
    """Options of ``bandit``.

    Attributes:
        smoothing: the part of the reward that is kept in a step.
    """

    smoothing: Fraction = 0.9


@register("bandit", BanditOptions)
def bandit(seen: Observation, state: State, options: BanditOptions) -> tuple[Array, State]:
    """``R_d ← 0.9·R_d + 0.1·exp(l_d)`` when present; ``p = (1 − K·ε)·R/ΣR + ε``.

    ``ε_t = min(1/K, √(ln K / (K·t)))`` is the exploration; t is the step for which the weights are
    made, the first after the warm-up being 1. l is the loss of the step just done, R its only
    memory. The reward is the *perplexity*: 1 nat more is 2.7 times the weight, so clipping decides
    soon.

    Source: Online Data Mixing, Albalak et al., 2023 (arXiv:2312.02406), in the smoothed-mean
    form of its later code, which counts the steps of the warm-up in t too. There R starts at 0,
    which favours whoever is drawn often in the beginning; here at the first reward. It sets
    sampling ratios there: ``domain_mean`` corresponds.
    """
    reward = known(state, "reward", seen.loss)
    reward = np.where(np.isnan(reward), _perplexity(seen.loss), reward)
    kept, fresh = options.smoothing * reward, (1 - options.smoothing) * _perplexity(seen.step_loss)
    reward = np.where(seen.present, kept + fresh, reward)
    state = {**state, "reward": reward}
    if seen.warming:
        return seen.uniform(), state
    count = int(seen.active.sum())
    t = seen.step + 1
    explore = min(1 / count, math.sqrt(math.log(count) / (count * t)))
    greedy = seen.weights(reward[seen.active])[seen.active]
    return seen.weights(np.maximum((1 - count * explore) * greedy, 0.0) + explore), state


def _perplexity(loss: Array) -> Array:
    return np.exp(np.minimum(loss, LARGEST_LOSS))
