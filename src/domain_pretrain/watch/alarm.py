"""What an alarm is: a pure rule over reduced numbers, asked at every logged window.

Another package adds one by a decorator and an entry point of the group ``domain_pretrain.alarms``;
the config turns it on by name: ``watch: {alarms: {steep: {factor: 2}}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from domain_pretrain.records.record import Experts, Finding
from domain_pretrain.rules.registry import Registry
from domain_pretrain.rules.state import State
from domain_pretrain.stats import Average, DomainStats, DomainTotals, Split
from domain_pretrain.watch.scores import Score


@dataclass(frozen=True)
class Known:
    """What is known of the data before training; identical on every rank.

    Attributes:
        average: whether a domain's loss is the mean over tokens or over samples.
        entropy: nats, of the token ids of a domain: the loss of a model that knows their
            frequencies and nothing else. Of the domains whose data has a manifest.
        tokens: of a domain's training data, where it is on this machine's disk.
        documents: of a domain's data, where it has a manifest.
        duplicates: of those, how many repeat the text of another, byte for byte.
        pinned: domains that the config pins (replay, say).
        shares: (first, stop) of consumed samples → each domain's planned part of them; None where
            there is no plan.
    """

    average: Average = "token"
    entropy: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    documents: Mapping[str, int] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)
    pinned: frozenset[str] = frozenset()
    shares: Callable[[int, int], Mapping[str, float]] | None = None


@dataclass(frozen=True)
class Reading:
    """What an alarm may look at; identical on every rank.

    Attributes:
        split: where the tokens come from: a window of training, or an evaluation.
        iteration: the last training iteration that it knows of.
        stats: exact sums of every domain.
        iterations: first, and the one after the last, of a window of training; else None.
        samples: likewise, in training samples consumed.
        trained: how many of these came to an update: not those of skipped ones, which ``stats``
            have not either.
        host: the host's numbers of the window's last step: ``learning_rate``, ``grad_norm``.
        scores: how far each domain's loss is from where it was heading; without the domains that
            were seen too rarely yet, and empty for an evaluation.
        grad_z: the same of the logarithm of the gradient norm; None where it is not known.
        noise: nats, the standard deviation of one sample's loss, by domain: of training, or, of
            domains that were seen too rarely yet, of the evaluation's own samples, if it tells.
        shares: each domain's planned part of the window's samples; empty where it is not known.
        experts: which ones the tokens of the window's last step went to; None where none were
            counted.
        known: what was known before training.
    """

    split: Split
    iteration: int
    stats: DomainStats
    iterations: tuple[int, int] | None = None
    samples: tuple[int, int] | None = None
    trained: int = 0
    host: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    grad_z: float | None = None
    noise: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    experts: Experts | None = None
    known: Known = Known()

    @cached_property
    def rows(self) -> dict[str, int]:
        """Of every domain, its row in what a rule keeps."""
        return {name: row for row, name in enumerate(self.stats.names)}

    @cached_property
    def totals(self) -> dict[str, DomainTotals]:
        """Of every domain that has tokens."""
        return dict(self.stats)

    @cached_property
    def losses(self) -> dict[str, float]:
        """Mean loss in nats of every domain that has one; without those that are not finite."""
        average = self.known.average
        return {name: one.loss(average) for name, one in self.totals.items() if not one.nonfinite}

    def where(self) -> dict[str, Any]:
        """What the evidence of every finding in a window of training holds: where to look."""
        if self.iterations is None or self.samples is None:
            return {}
        return {"iterations": list(self.iterations), "samples": list(self.samples)}


# (what was read, what the rule kept, its options) → (what it found, what it keeps).
# A pure function: it never writes into what it is given.
Alarm = Callable[[Reading, State, Any], tuple[Sequence[Finding], State]]

ALARMS: Registry[Alarm] = Registry("alarm", "domain_pretrain.alarms")
register = ALARMS.register
