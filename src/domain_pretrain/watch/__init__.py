"""Looking at the numbers while a run trains: alarms, and what they find.

An alarm is a pure rule, (reading, state, options) → (findings, state), asked on every rank at every
logged window and evaluation. ``alarm`` says what one is; ``scores`` tells it how far a loss is from
where it was heading, ``cause`` what is likely behind that, ``memory`` keeps what it needs by
domain. One file each: ``nonfinite``, ``dirty``, ``too_low``, ``spike``, ``all_moved``,
``duplicate``, ``starved``, ``forgetting``, ``plateau``, ``few_experts``. ``watch`` asks those of a
run and keeps their state; ``command`` and ``documents`` tell others, in processes of their own;
``decision`` is what follows a spike, and its file. Used by ``flow``, ``hosts`` and ``launch``;
knows nothing of training.
"""

from domain_pretrain.watch import (  # noqa: F401 -- importing an alarm registers it
    all_moved,
    dirty,
    duplicate,
    few_experts,
    forgetting,
    nonfinite,
    plateau,
    spike,
    starved,
    too_low,
)
from domain_pretrain.watch.alarm import Alarm, Known, Reading, register
from domain_pretrain.watch.watch import Watch

__all__ = ["Alarm", "Known", "Reading", "Watch", "register"]
