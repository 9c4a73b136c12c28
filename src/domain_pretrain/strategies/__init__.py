"""Reweighting rules: pure functions of what is known of the domains.

``Reweighter`` joins it all for the lagged, global scope. ``microbatch`` and ``sample``, which need
torch, weigh within the forward pass.
"""

from domain_pretrain.rules.options import Options
from domain_pretrain.rules.state import State
from domain_pretrain.strategies import (  # noqa: F401 -- importing a rule registers it
    bandit,
    excess,
    fixed,
    group_dro,
    learnability,
    loss_shape,
    velocity,
)
from domain_pretrain.strategies.observation import Observation
from domain_pretrain.strategies.registry import Strategy, available, build, register
from domain_pretrain.strategies.reweighter import Memory, Reweighter

__all__ = [
    "Memory",
    "Observation",
    "Options",
    "Reweighter",
    "State",
    "Strategy",
    "available",
    "build",
    "register",
]
