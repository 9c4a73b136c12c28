"""What practitioners read off the losses of domains, as rules: each says what it saw, and no more.

A rule is a pure function of a run's summaries or of its learning rate. Its words name the numbers;
whether a *may* is a *does* needs a look at the data, or another run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from domain_pretrain.report.history import History
from domain_pretrain.report.series import Curve
from domain_pretrain.report.table import ERRORS, Summary, summarise

Level = Literal["good", "note", "warning"]

LOW, HIGH, FULL = 0.5, 0.9, 0.15  # of the yardstick: easy; dirty; hardly anything to learn
TYPICAL_LOW, TYPICAL_HIGH = 0.5, 1.5  # of the median domain, where no entropy is known
FALLS = 0.05  # of the loss at the start, at least
RISES = 0.02  # of the loss at the start, at least
FOLD = 2.0  # start / end: less is "not a few-fold"
RATES = (1e-6, 1e-5)  # peaks that are usual in continued pretraining
SHARES = (0.01, 0.1)  # of the run, for the warm-up and for the decay
LEAST_WINDOWS = 20  # or a share of the run cannot be told
PEAK = 0.999  # of the peak: as good as at it


@dataclass(frozen=True)
class Check:
    """What a rule saw.

    Attributes:
        rule: its title.
        level: ``good``, something to know, or something to look at.
        meaning: what it may mean, and what to try.
        seen: of each domain concerned, its numbers in words; ``""`` for the run as a whole.
    """

    rule: str
    level: Level
    meaning: str
    seen: Mapping[str, str]


@dataclass(frozen=True)
class _Domain:
    """A domain with finite losses at both ends, and what high and low are measured by."""

    name: str
    start: float
    end: float
    error: float  # of the difference; 0 where it is not known
    entropy: float | None
    typical: float | None  # the median domain's loss at the start

    @property
    def low(self) -> bool:
        return self._below(self.start, LOW, TYPICAL_LOW)

    @property
    def high(self) -> bool:
        """At the end."""
        if self.entropy is not None:
            return self.end > HIGH * self.entropy
        return self.typical is not None and self.end > TYPICAL_HIGH * self.typical

    @property
    def falls(self) -> bool:
        return self.start - self.end > max(ERRORS * self.error, FALLS * abs(self.start))

    @property
    def rises(self) -> bool:
        return self.end - self.start > max(ERRORS * self.error, RISES * abs(self.start))

    @property
    def very_low(self) -> bool:
        return self.entropy is not None and self.end < FULL * self.entropy

    def _below(self, loss: float, part: float, typical: float) -> bool:
        if self.entropy is not None:
            return loss < part * self.entropy
        return self.typical is not None and loss < typical * self.typical

    def says(self) -> str:
        change = "" if not self.start else f" ({(self.end / self.start - 1):+.1%})"
        known = ""
        if self.entropy is not None:
            parts = f"{self.start / self.entropy:.2f} → {self.end / self.entropy:.2f}"
            known = f"; {parts} of its unigrams' {self.entropy:.2f}"
        return f"{self.start:.3f} → {self.end:.3f} nats{change}{known}"


def check(history: History, entropy: Mapping[str, float]) -> list[Check]:
    """All rules over a run; the ones that saw nothing are left out.

    Args:
        history: of the run.
        entropy: nats, of the token ids of a domain, where it is known.
    """
    summaries = summarise(history)
    domains = _domains(summaries, entropy)
    found = [
        all_rising(domains),
        rising(history, domains),
        very_low(domains),
        high_and_flat(domains),
        not_few_fold(domains),
        low_at_start(domains),
        high_and_falling(domains),
    ]
    if "learning_rate" in history.host:
        rate = history.host.curve("learning_rate")
        found += [peak_rate(rate), warm_up(rate), decay(rate)]
    return [one for one in found if one is not None and one.seen]


def _domains(summaries: Sequence[Summary], entropy: Mapping[str, float]) -> list[_Domain]:
    known = [
        one
        for one in summaries
        if one.start is not None
        and one.end is not None
        and math.isfinite(one.start.value)
        and math.isfinite(one.end.value)
    ]
    starts = [one.start.value for one in known if one.start is not None]
    typical = float(np.median(starts)) if len(starts) > 2 else None
    found = []
    for one in known:
        assert one.start is not None and one.end is not None
        error = math.hypot(one.start.error or 0.0, one.end.error or 0.0)
        own = entropy.get(one.domain)
        found.append(
            _Domain(one.domain, one.start.value, one.end.value, error, own or None, typical)
        )
    return found


def _rule(title: str, level: Level, meaning: str, domains: Sequence[_Domain]) -> Check:
    """What a rule says of these domains, and of what it measured them by."""
    typical = {one.typical for one in domains if one.entropy is None}
    for loss in typical - {None}:
        meaning += f" High and low are meant beside the median domain, which starts at {loss:.3f}."
    return Check(title, level, meaning, {one.name: one.says() for one in domains})


def low_at_start(domains: Sequence[_Domain]) -> Check:
    """Low from the first windows on."""
    return _rule(
        "Low at the start",
        "note",
        "Easy text, or text that the model has seen before. Little is left to learn here; a "
        "smaller share may do.",
        [one for one in domains if one.low and not one.very_low],
    )


def high_and_falling(domains: Sequence[_Domain]) -> Check:
    """What a domain that is being learnt looks like."""
    return _rule(
        "Falling",
        "good",
        "The model is learning what is in this data. Only a validation loss tells whether it is "
        "more than remembering.",
        [one for one in domains if one.falls and not (one.low or one.high or one.very_low)],
    )


def high_and_flat(domains: Sequence[_Domain]) -> Check:
    """High to the end."""
    return _rule(
        "High to the end",
        "warning",
        "Dirty text, or text that is too hard for this model so far: a loss near that of the mere "
        "frequencies of tokens says that no order was found. Read some documents "
        "(domain-pretrain trace) before the share is raised or lowered.",
        [one for one in domains if one.high],
    )


def very_low(domains: Sequence[_Domain]) -> Check:
    """As suspicious as very high."""
    return _rule(
        "Very low",
        "warning",
        "As suspicious as very high: copies, boilerplate, or lines that hold nothing but "
        "newlines. Read some documents (domain-pretrain trace).",
        [one for one in domains if one.very_low],
    )


def all_rising(domains: Sequence[_Domain]) -> Check | None:
    """No domain does that to all others."""
    if len(domains) < 2 or not all(one.rises for one in domains):
        return None
    return Check(
        "All domains rise",
        "warning",
        "That is rarely the data of one domain. The learning rate is the first thing to look at.",
        {one.name: one.says() for one in domains},
    )


def rising(history: History, domains: Sequence[_Domain]) -> Check | None:
    """Domains that end above where they started, and were there for the last third, too."""
    up = [one for one in domains if one.rises and _stays(history.train.curve(one.name), one.start)]
    if len(up) == len(domains) > 1:
        return None  # said by all_rising
    return Check(
        "Rises and stays up",
        "warning",
        "What the model knew may be fading (forgetting), if this domain is replay. A lower "
        "learning rate or more replay are what helps most often.",
        {one.name: one.says() for one in up},
    )


def _stays(curve: Curve, start: float) -> bool:
    last = curve.mean[-max(1, len(curve.mean) // 3) :]
    finite = last[np.isfinite(last)]
    return bool(finite.size) and float(np.median(finite)) - start > RISES * abs(start)


def not_few_fold(domains: Sequence[_Domain]) -> Check:
    """Domains that were not low, and have not changed much."""
    near = [
        one
        for one in domains
        if not (one.low or one.high or one.very_low or one.rises)
        and one.end > 0
        and one.start / one.end < FOLD
    ]
    return Check(
        f"Start and end less than {FOLD:g}-fold apart",
        "note",
        "Under-fitted, if this is what the run was to learn: more tokens, or a higher learning "
        "rate. As it should be, if the model knew it before.",
        {one.name: f"{one.start / one.end:.2f}-fold: {one.says()}" for one in near},
    )


def peak_rate(rate: Curve) -> Check | None:
    """The largest learning rate."""
    peak = _peak(rate)
    low, high = RATES
    if not peak or low <= peak <= high:
        return None
    return Check(
        "Learning rate",
        "note",
        f"Peaks of continued pretraining are mostly between {low:g} and {high:g}. Others can be "
        "right: for small models, or from scratch.",
        {"": f"its peak is {peak:.3g}"},
    )


def warm_up(rate: Curve) -> Check | None:
    """Which part of the run the learning rate rises in."""
    peak = _peak(rate)
    if not peak or len(rate.high) < LEAST_WINDOWS:
        return None
    at = int(np.flatnonzero(rate.high >= PEAK * peak)[0])
    share = float(rate.iteration[at] / rate.iteration[-1])
    # Known to a window: the peak may have been reached since the one before.
    since = float(rate.iteration[at - 1] / rate.iteration[-1]) if at else 0.0
    return _share(
        "Warm-up", "rises over {:.1%} of the run" if at else "has no warm-up", since, share
    )


def decay(rate: Curve) -> Check | None:
    """Which part of the run the learning rate falls in."""
    peak = _peak(rate)
    if not peak or len(rate.high) < LEAST_WINDOWS:
        return None
    last = len(rate.high) - 1
    at = int(np.flatnonzero(rate.high >= PEAK * peak)[-1])
    least, most = (
        1 - float(rate.iteration[one] / rate.iteration[-1]) for one in (min(at + 1, last), at)
    )
    says = "falls over {:.1%} of the run" if at < last else "has no decay"
    return _share("Decay", says, least, most)


def _share(what: str, does: str, least: float, most: float) -> Check | None:
    low, high = SHARES
    if least <= high and most >= low:
        return None
    return Check(
        f"{what} of the learning rate",
        "note",
        f"Unusual for a schedule with a plateau, where {low:.0%} to {high:.0%} are common; a "
        "cosine has none, and falls all along.",
        {"": "it " + does.format(most)},
    )


def _peak(rate: Curve) -> float:
    known = rate.high[np.isfinite(rate.high)]
    return float(known.max()) if known.size else 0.0
