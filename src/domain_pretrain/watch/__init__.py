"""Looking at the numbers while a run trains: alarms, and what they find.

An alarm is a pure rule, (reading, state, options) → (findings, state), asked on every rank at every
logged window and evaluation. ``alarm`` says what one is, ``nonfinite`` is one, ``watch`` asks those
of a run and keeps their state; ``decision`` is what follows a spike, and its file. Used by
``flow``, ``hosts`` and ``launch``; knows nothing of training.
"""

from domain_pretrain.watch import nonfinite  # noqa: F401 -- importing an alarm registers it
from domain_pretrain.watch.alarm import Alarm, Reading, register
from domain_pretrain.watch.watch import Watch

__all__ = ["Alarm", "Reading", "Watch", "register"]
