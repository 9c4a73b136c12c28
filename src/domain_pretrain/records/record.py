"""What is published: a logging window or an evaluation, what a rule found in one, and events."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from domain_pretrain.records.samples import Samples
from domain_pretrain.stats import Average, DomainStats, Split

Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Experts:
    """Which experts of a mixture the tokens of one step went to.

    Attributes:
        layers: that have experts; their numbers, from 1.
        topk: experts that a token is given to.
        load: int64 ``[layers, domains, experts]``: how often a domain's tokens were given to one;
            the domains are in the order of the run.
        overall: numbers about all tokens by name, means over the layers; see
            :func:`.adapt.load.summary`.
        domains: the same of each domain that had tokens.
    """

    layers: tuple[int, ...]
    topk: int
    load: NDArray[np.int64]
    overall: Mapping[str, float]
    domains: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Record:
    """A logging window or an evaluation, ready to be published.

    Attributes:
        split: where its tokens come from.
        iteration: the last training iteration it knows of.
        consumed_samples: the host's count of training samples at that iteration.
        stats: sums of the window or evaluation.
        consumed_tokens: training tokens so far by domain; None for an evaluation.
        consumed_domain_samples: training samples so far by domain; None for an evaluation.
        weights: the loss multipliers that were in force, by domain, a mean over the window's
            tokens; None without reweighting.
        reweighting: numbers about all of them by name, ``weighted_loss`` (nats, beside the raw
            loss) among them; None without reweighting.
        shares: each domain's part of the weighted tokens; None without reweighting.
        mix: each domain's part of the block of the stream that the last sample was read from; None
            where it does not follow the losses.
        host: numbers of the host at that iteration by name; None for an evaluation.
        experts: of that iteration alone; None where none were counted.
        final: an evaluation after the end of training, hence after the last checkpoint: a run
            that resumes at this iteration does not keep it.
        samples: the sums behind ``stats``, of an evaluation on the fixed set; else None.
        risen: nats that a domain's loss has risen by since its base, and the standard error of
            that, by name; None where nothing is compared with a base.
    """

    split: Split
    iteration: int
    consumed_samples: int
    stats: DomainStats
    consumed_tokens: Mapping[str, float] | None = None
    consumed_domain_samples: Mapping[str, int] | None = None
    weights: Mapping[str, float] | None = None
    reweighting: Mapping[str, float] | None = None
    shares: Mapping[str, float] | None = None
    mix: Mapping[str, float] | None = None
    host: Mapping[str, float] | None = None
    experts: Experts | None = None
    final: bool = False
    samples: Samples | None = None
    risen: Mapping[str, tuple[float, float | None]] | None = None

    def errors(self, average: Average) -> Mapping[str, float]:
        """Standard errors of the losses, nats, by domain; of those that it can be told of."""
        return {} if self.samples is None else self.samples.errors(average)


def reweighted(record: Record, weighted: DomainStats, numbers: Mapping[str, float]) -> Record:
    """The record with what reweighting did to its window.

    Args:
        record: of the window.
        weighted: its sums with every token's mask times its multiplier.
        numbers: the strategy's own.
    """
    total, weights, shares = weighted.total, {}, {}
    parts = dict(weighted)
    for name, totals in record.stats:
        # A domain whose multiplier was 0 has no weighted tokens, hence no totals.
        tokens = parts[name].tokens if name in parts else 0.0
        weights[name] = tokens / totals.tokens if totals.tokens else math.nan
        shares[name] = tokens / total.tokens if total.tokens else math.nan
    tokens = record.stats.total.tokens
    loss = total.loss_sum / tokens if tokens and not total.nonfinite else math.nan
    summary = {"weighted_loss": loss, **numbers}
    return replace(record, weights=weights, shares=shares, reweighting=summary)


@dataclass(frozen=True)
class Finding:
    """Something about a domain that a person should know; see the package ``watch``.

    Attributes:
        rule: name of the alarm that found it.
        domain: the domain; None where all are concerned.
        iteration: the training iteration at which it was found.
        severity: how bad it is.
        message: one sentence for a person, which names domain and numbers.
        cause: the likely cause, in a few words; empty where there is none to tell.
        evidence: the numbers behind it, by name; JSON takes all of them.
        documents: those behind it, the worst first, each by name of its facts: ``prefix``,
            ``document`` and so on; JSON takes them. Empty where none could be told.
        advice: what to try, a sentence or two; empty where there is nothing to say.
        final: found in an evaluation after the end of training, as :attr:`Record.final` has it; the
            plugin says so, not the alarm.
    """

    rule: str
    domain: str | None
    iteration: int
    severity: Severity
    message: str
    cause: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    documents: tuple[Mapping[str, Any], ...] = ()
    advice: str = ""
    final: bool = False


@dataclass(frozen=True)
class Event:
    """Something that happened to the run, at a point of it: a resume, a change of the config.

    Attributes:
        name: what, in one word; a mark in pictures.
        iteration: the last training iteration before it.
        detail: one sentence for a person; empty where the name says all.
    """

    name: str
    iteration: int
    detail: str = ""
