"""Models beside each other: every score of every domain, what changed, and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.score import Score, difference
from domain_pretrain.report.significance import LEVEL, chance, holm

LOSS = "loss"  # the score whose mean is nats per token: e to it is the perplexity
ERRORS = 2  # standard errors, beyond which a difference is pointed out


class Mark(Enum):
    """What a difference says."""

    BETTER = "better"
    WORSE = "worse"
    PERHAPS_BETTER = "better?"  # beyond two standard errors, but among so many lines that may be
    PERHAPS_WORSE = "worse?"
    SAME = "same"  # cannot be told apart
    NO_ERROR = "no error known"  # of fewer than two parts
    BROKEN = "not finite"
    OTHER_UNITS = "other units"  # the same text, counted in other tokens


@dataclass(frozen=True)
class Change:
    """From the first model to the last.

    Attributes:
        delta: last mean − first mean.
        error: its standard error; None where there is none.
        chance: how likely such a difference is by chance; None where ``error`` is.
        mark: what it says, beside all others of the table.
    """

    delta: float
    error: float | None
    chance: float | None
    mark: Mark


@dataclass(frozen=True)
class Line:
    """One score of one domain.

    Attributes:
        name: of the score.
        domain: of it.
        scores: of each model; None where it has none.
        change: None where the first or the last model has none, and of a single model.
    """

    name: str
    domain: str
    scores: tuple[Score | None, ...]
    change: Change | None

    @property
    def higher_is_better(self) -> bool:
        """Of the score."""
        return next(score.higher_is_better for score in self.scores if score is not None)


@dataclass(frozen=True)
class Comparison:
    """All lines.

    Attributes:
        labels: of the models.
        lines: by score, then by domain, in order of first appearance.
        compared: lines with a verdict: of so many, some differ by chance.
    """

    labels: tuple[str, ...]
    lines: tuple[Line, ...]
    compared: int

    def of(self, mark: Mark) -> dict[str, list[str]]:
        """The domains with lines of this mark, each with the names of their scores."""
        found: dict[str, list[str]] = {}
        for line in self.lines:
            if line.change is not None and line.change.mark is mark:
                found.setdefault(line.domain, []).append(line.name)
        return found


def compare(models: Sequence[tuple[str, Evaluated]]) -> Comparison:
    """Put models beside each other, the base first; the last is compared with the first.

    A verdict of a single line is that of Student's t at :data:`~.significance.LEVEL`, for many
    draws 1.96 standard errors; of many lines, Holm's stricter bound keeps the chance that any of
    them is false at that level.
    """
    names = dict.fromkeys(
        (score.name, score.domain) for _, model in models for score in model.scores
    )
    order = {name: at for at, name in enumerate(dict.fromkeys(name for name, _ in names))}
    found = [{(one.name, one.domain): one for one in model.scores} for _, model in models]
    lines = []
    for name, domain in sorted(names, key=lambda one: order[one[0]]):
        scores = tuple(of.get((name, domain)) for of in found)
        lines.append(Line(name, domain, scores, _change(scores)))
    tested = [at for at, line in enumerate(lines) if line.change and line.change.chance is not None]
    held = holm([_chance(lines[at]) for at in tested])
    for at, holds in zip(tested, held, strict=True):
        lines[at] = _judged(lines[at], holds)
    return Comparison(tuple(label for label, _ in models), tuple(lines), len(tested))


def _change(scores: Sequence[Score | None]) -> Change | None:
    """Without the verdict, which depends on all lines."""
    first, last = scores[0], scores[-1]
    if len(scores) < 2 or first is None or last is None:
        return None
    delta, error = difference(first, last)
    if not math.isfinite(delta):
        return Change(delta, None, None, Mark.BROKEN)
    if _other_units(first, last):
        return Change(delta, None, None, Mark.OTHER_UNITS)
    if error is None or not math.isfinite(error):
        return Change(delta, None, None, Mark.NO_ERROR)
    draws = min(len(first.parts), len(last.parts))
    return Change(delta, error, chance(delta, error, draws), Mark.SAME)


def _other_units(first: Score, last: Score) -> bool:
    """Whether the same parts have other counts: a text in the tokens of another tokenizer."""
    old, new = (sorted((part.name, part.count) for part in one.parts) for one in (first, last))
    return old != new and [name for name, _ in old] == [name for name, _ in new]


def _chance(line: Line) -> float:
    assert line.change is not None and line.change.chance is not None
    return line.change.chance


def _judged(line: Line, holds: bool) -> Line:
    change = line.change
    assert change is not None and change.error is not None
    if not holds and abs(change.delta) <= ERRORS * change.error:
        return line
    better = (change.delta > 0) is line.higher_is_better
    if holds:
        mark = Mark.BETTER if better else Mark.WORSE
    else:
        mark = Mark.PERHAPS_BETTER if better else Mark.PERHAPS_WORSE
    return replace(line, change=replace(change, mark=mark))


def verdict(comparison: Comparison) -> Iterator[str]:
    """The table in a few sentences; none of a single model."""
    if len(comparison.labels) < 2:
        return
    first, last = comparison.labels[0], comparison.labels[-1]
    for mark, text in (
        (Mark.BETTER, f"better in {last} than in {first}"),
        (Mark.WORSE, "forgotten (worse by more than chance)"),
        (Mark.PERHAPS_BETTER, f"perhaps better (beyond {ERRORS} standard errors)"),
        (Mark.PERHAPS_WORSE, f"perhaps forgotten (beyond {ERRORS} standard errors)"),
        (Mark.SAME, "cannot be told apart"),
        (Mark.NO_ERROR, "not judged, as fewer than two parts give no error"),
        (Mark.OTHER_UNITS, "not judged, as the models cut the same texts into other tokens"),
        (Mark.BROKEN, "not finite"),
    ):
        domains = comparison.of(mark)
        if domains:
            told = "; ".join(f"{name} ({', '.join(names)})" for name, names in domains.items())
            yield f"{text}: {told}"
    if comparison.compared and not comparison.of(Mark.WORSE):
        yield "nothing was forgotten, as far as these lines can tell"
    if comparison.compared:
        yield (
            f"{comparison.compared} lines compared; a bound for so many (Holm's) keeps the chance "
            f"that any verdict without a question mark is false below {LEVEL:.0%}"
        )
