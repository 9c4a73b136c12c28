"""What a person at the terminal sees: a line for a logged step, a table for an evaluation."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.record import Finding, Record
from domain_pretrain.records.score import Score
from domain_pretrain.stats import Average, DomainStats, DomainTotals

Row = tuple[str, DomainTotals]

ALL_UP_TO = 12  # so many domains are all shown, in the order of the config;
SHOWN = 8  # of more, these with the highest loss
PLAIN = str.maketrans({"▼": "v", "▲": "^", "…": "...", "×": "x", "±": "+-"})


def say(text: str) -> None:
    """Print now, on any terminal: one that cannot show a character must not end a training run."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(text.translate(PLAIN).encode(encoding, "replace").decode(encoding), flush=True)


class Console(Exporter):
    """Turns stats into text; remembers each domain's last loss, to point up or down from it."""

    def __init__(self, average: Average, out: Callable[[str], None] = say) -> None:
        self._average = average
        self._out = out
        self._previous: dict[tuple[str, str], float] = {}
        self._found: Counter[tuple[str, int]] = Counter()

    def line(self, record: Record) -> None:
        """One line for a window, a table for an evaluation."""
        self._found.clear()
        if record.split == "train":
            self._out(self.train_line(record.stats, record.weights, record.reweighting))
        else:
            errors = None if record.samples is None else record.errors(self._average)
            self._out(self.evaluation_table(record.split, record.iteration, record.stats, errors))

    def scores(self, evaluated: Evaluated) -> None:
        """A table."""
        self._out(self.scores_table(evaluated))

    def finding(self, finding: Finding) -> None:
        """One line each; for one rule and window, no more than a person reads."""
        self._found[finding.rule, finding.iteration] += 1
        count = self._found[finding.rule, finding.iteration]
        if count <= SHOWN:
            cause = f"; likely cause: {finding.cause}" if finding.cause else ""
            self._out(f"channel loss | {finding.severity.upper()}: {finding.message}{cause}")
            if finding.advice:
                self._out(f"channel loss |   {finding.advice}")
        elif count == SHOWN + 1:
            self._out(f"channel loss | … more of {finding.rule} at iteration {finding.iteration}")

    def traced(self, finding: Finding) -> None:
        """The worst documents, a line each."""
        if not finding.documents:
            return
        where = "" if finding.domain is None else f" in {finding.domain}"
        what = f"{finding.rule}{where} at iteration {finding.iteration}"
        self._out(f"channel loss | documents behind {what}, the worst first:")
        for one in finding.documents:
            self._out(f"channel loss |   {document_line(one)}")

    def train_line(
        self,
        stats: DomainStats,
        weights: Mapping[str, float] | None = None,
        reweighting: Mapping[str, float] | None = None,
    ) -> str:
        """``channel loss | finance 2.131 ▼ | general 1.870 ▲``; absent domains are left out.

        With multipliers in force: ``finance 2.131 ▼ ×1.24 | … | weighted 1.957, effective domains
        1.9, clipped 0%``.
        """
        rows, hidden = self._select(stats)
        cells = []
        for name, totals in rows:
            weight = "" if weights is None else f" ×{weights[name]:.2f}"
            cells.append(f"{name} {self._loss('train', name, totals)}{weight}")
        if hidden:
            cells.append(f"… {hidden} more")
        if reweighting is not None and rows:
            cells.append(_summary(reweighting))
        self._remember("train", stats)
        return " | ".join(["channel loss", *(cells or ["no tokens"])])

    def evaluation_table(
        self,
        split: str,
        iteration: int,
        stats: DomainStats,
        errors: Mapping[str, float] | None = None,
    ) -> str:
        """A header and a line for each domain: loss, its standard error where ``errors`` are
        given, perplexity, tokens; then for each that several are part of."""
        rows, hidden = self._select(stats)
        above = [(f"{name}/…", totals) for name, totals in stats.parents()]
        width = max([len("domain"), *(len(name) for name, _ in (*rows, *above))])
        between = "" if errors is None else f"{'± error':<10}"
        lines = [
            f"channel loss ({split}) at iteration {iteration}",
            f"  {'domain':<{width}}  {'loss':<9} {between}{'ppl':>10} {'tokens':>15}",
        ]
        told = [self._evaluated(split, width, *row, errors) for row in (*rows, *above)]
        lines += told[: len(rows)]
        if hidden:
            lines.append(f"  … {hidden} more")
        lines += told[len(rows) :]
        self._remember(split, [*stats, *above])
        return "\n".join(lines)

    def scores_table(self, evaluated: Evaluated) -> str:
        """A header, and a line for each domain of each score: mean, its standard error where that
        is known, and of how many values."""
        groups: dict[str, list[Score]] = {}
        for score in evaluated.scores:
            groups.setdefault(score.name, []).append(score)
        first = max(map(len, ["score", *groups]))
        second = max(map(len, ["domain", *(score.domain for score in evaluated.scores)]))
        lines = [
            f"evaluation of the model of iteration {evaluated.iteration}",
            f"  {'score':<{first}}  {'domain':<{second}}  "
            f"{'mean':>9}   {'± error':>9} {'count':>9}",
        ]
        for name, scores in groups.items():
            shown = _worst(scores)
            for score in shown:
                error = "" if score.error is None else f"{score.error:.4f}"
                lines.append(
                    f"  {name:<{first}}  {score.domain:<{second}}  {self._mean(score)} "
                    f"{error:>9} {score.count:>9,}"
                )
            if len(shown) < len(scores):
                lines.append(f"  {name:<{first}}  … {len(scores) - len(shown)} more")
        for score in evaluated.scores:
            self._previous[f"eval-{score.name}", score.domain] = score.mean
        return "\n".join(lines)

    def _mean(self, score: Score) -> str:
        """11 wide: with where it went since the last time."""
        arrow = self._arrow(score.mean, (f"eval-{score.name}", score.domain))
        return "NaN".rjust(9) + "  " if math.isnan(score.mean) else f"{score.mean:9.4f}{arrow:<2}"

    def _evaluated(
        self,
        split: str,
        width: int,
        name: str,
        totals: DomainTotals,
        errors: Mapping[str, float] | None,
    ) -> str:
        loss = self._loss(split, name, totals)
        ppl = f"{totals.ppl(self._average):,.2f}"
        error = f"{errors[name]:.4f}" if errors and name in errors else ""
        between = "" if errors is None else f"{error:<10}"
        return f"  {name:<{width}}  {loss:<9} {between}{ppl:>10} {totals.tokens:>15,.0f}"

    def _select(self, stats: DomainStats) -> tuple[Sequence[Row], int]:
        """The domains to show, and how many are left out."""
        rows = list(stats)
        if len(rows) <= ALL_UP_TO:
            return rows, 0
        rows.sort(key=lambda row: (row[1].nonfinite == 0, -row[1].loss(self._average)))
        return rows[:SHOWN], len(rows) - SHOWN

    def _loss(self, split: str, name: str, totals: DomainTotals) -> str:
        loss = totals.loss(self._average)
        if math.isnan(loss):
            return "NaN"
        return f"{loss:.3f}{self._arrow(loss, (split, name))}"

    def _arrow(self, value: float, of: tuple[str, str]) -> str:
        """Down or up from what it was."""
        previous = self._previous.get(of, math.nan)
        return " ▼" if value < previous else " ▲" if value > previous else ""

    def _remember(self, split: str, rows: Iterable[Row]) -> None:
        for name, totals in rows:
            self._previous[split, name] = totals.loss(self._average)


def _worst(scores: list[Score]) -> list[Score]:
    """Those to show, in their order: all of a few, of many the worst."""
    if len(scores) <= ALL_UP_TO:
        return scores
    sign = 1 if scores[0].higher_is_better else -1
    last = sorted(scores, key=lambda one: (not math.isnan(one.mean), sign * one.mean))[:SHOWN]
    return [one for one in scores if one in last]


def document_line(one: Mapping[str, Any]) -> str:
    """A document of a finding, for a person: which tokens of it, how odd, and how they begin."""
    measures = [
        f"{one[key]:.2f} nats/token {words}"
        for key, words in (("surprise", "surprise"), ("entropy", "entropy"))
        if isinstance(one.get(key), (int, float))
    ]
    if one.get("copies", 0) > 1:
        measures.append(f"{one['copies']} times")
    text = f": {one['text']!r}" if one.get("text") else ""
    about = f" ({', '.join(measures)})" if measures else ""
    first, tokens = one.get("first"), one.get("tokens")
    part = f"[{first}:{first + tokens}]" if isinstance(first, int) and tokens else ""
    return f"document {one.get('document')}{part} of {one.get('prefix')}{about}{text}"


def _summary(numbers: Mapping[str, float]) -> str:
    """What reweighting does, from ``Record.reweighting``; some ways know the loss only."""
    loss = numbers["weighted_loss"]
    words = ["weighted NaN" if math.isnan(loss) else f"weighted {loss:.3f}"]
    if "effective_domains" in numbers:
        words.append(f"effective domains {numbers['effective_domains']:.1f}")
    if "clip_rate" in numbers:
        words.append(f"clipped {numbers['clip_rate']:.0%}")
    return ", ".join(words)
