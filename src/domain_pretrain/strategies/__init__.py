"""Losses → weights → multipliers: the arithmetic of reweighting, without a process group.

``section`` is the config's ``reweight``, one model per scope. With scope ``global_batch``, once per
step, on the host: sums → ``ema`` → ``observation`` → a rule, one file each, found by ``registry`` →
``multipliers``; ``reweighter`` is that whole way, ``diagnostics`` what it did, for the log. With
scope ``microbatch``, on the device: sums → ``shapes`` → ``microbatch``, the only file with torch.

Everything is a pure function: what is remembered goes in and comes out. Used by ``flow``, which
brings the sums and applies the multipliers, to losses or to the shares of the stream; by ``config``
and ``data``, which read the sections. Imports ``rules``, and of ``records`` the reader of metrics
files; nothing of ``flow``.
"""

from domain_pretrain.rules.options import Options
from domain_pretrain.rules.state import State
from domain_pretrain.strategies import (  # noqa: F401 -- importing a rule registers it
    bandit,
    excess,
    fixed,
    group_dro,
    hold,
    learnability,
    loss_shape,
    ramp,
    velocity,
)
from domain_pretrain.strategies.course import Course
from domain_pretrain.strategies.observation import Observation
from domain_pretrain.strategies.registry import (
    Strategy,
    StrategyOptions,
    available,
    build,
    register,
)
from domain_pretrain.strategies.reweighter import Memory, Reweighter

__all__ = [
    "Course",
    "Memory",
    "Observation",
    "Options",
    "Reweighter",
    "State",
    "Strategy",
    "StrategyOptions",
    "available",
    "build",
    "register",
]
