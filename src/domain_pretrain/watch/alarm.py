"""What an alarm is: a pure rule over reduced numbers, asked at every logged window.

Another package adds one by a decorator and an entry point of the group ``domain_pretrain.alarms``;
the config turns it on by name: ``watch: {alarms: {steep: {factor: 2}}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.registry import Registry
from domain_pretrain.rules.state import State
from domain_pretrain.stats import DomainStats, Split


@dataclass(frozen=True)
class Reading:
    """What an alarm may look at; identical on every rank.

    Attributes:
        split: where the tokens come from: a window of training, or an evaluation.
        iteration: the last training iteration that it knows of.
        stats: exact sums of every domain.
    """

    split: Split
    iteration: int
    stats: DomainStats


# (what was read, what the rule kept, its options) → (what it found, what it keeps).
# A pure function: it never writes into what it is given.
Alarm = Callable[[Reading, State, Any], tuple[Sequence[Finding], State]]

ALARMS: Registry[Alarm] = Registry("alarm", "domain_pretrain.alarms")
register = ALARMS.register
