"""Scores of models at the console and as JSON: the table, the verdict, the worst documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from domain_pretrain.json_file import finite
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.score import Score
from domain_pretrain.report.compare import LOSS, Change, Comparison, Line, Mark, compare, verdict
from domain_pretrain.report.table import NONE, written
from domain_pretrain.report.worst import Worst, worst_documents
from domain_pretrain.stats import perplexity

MOST = 4  # models in a table: of more, the first and the last ones
WORST = 3  # documents of a domain
DOMAINS = 12  # with worst documents
SAID = 0.4  # of the noise, from which on a sentence says so
_STYLES = {Mark.BETTER: "green", Mark.WORSE: "bold red", Mark.BROKEN: "bold red"}
Models = Sequence[tuple[str, Evaluated]]


def print_evaluations(console: Console, models: Models, title: str | None = None) -> None:
    """The table, what it comes to, and the last model's worst documents.

    Args:
        console: where.
        models: each with its label, the base first.
        title: above the table.
    """
    comparison = compare(models)
    console.print(score_table(comparison, title))
    for line in verdict(comparison):
        console.print(line)
    worst = worst_documents(models[-1][1].scores, WORST)
    if worst:
        console.print(worst_table(worst, models[-1][0]))
        for line in worst_lines(worst):
            console.print(line)


def models_of(evaluations: Sequence[Evaluated]) -> Models:
    """Those of one run, by iteration; of many, the first and the last."""
    shown = [*evaluations[:1], *evaluations[1:][-(MOST - 1) :]]
    return [(_label(one), one) for one in shown]


def _label(one: Evaluated) -> str:
    return f"iteration {one.iteration:,}" + (" (end)" if one.final else "")


def score_table(comparison: Comparison, title: str | None = None) -> Table:
    """A row for each score of each domain, and the difference of the last model to the first."""
    several = len(comparison.labels) > 1
    losses = any(line.name == LOSS for line in comparison.lines)
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        caption=_caption(several, losses),
        caption_justify="left",
    )
    table.add_column("score", overflow="fold")
    table.add_column("domain", overflow="fold")
    for label in comparison.labels:
        table.add_column(label, justify="right", overflow="fold")
    if several:
        table.add_column("last − first", justify="right")
        table.add_column("")
    if losses:
        table.add_column("ppl", justify="right")
    for at, line in enumerate(comparison.lines):
        if at and line.name != comparison.lines[at - 1].name:
            table.add_section()
        cells = [line.name, line.domain, *map(written_score, line.scores)]
        if several:
            cells += [written_change(line.change), line.change.mark.value if line.change else ""]
        if losses:
            cells.append(written_perplexity(line))
        table.add_row(*cells, style=_STYLES.get(line.change.mark) if line.change else None)
    return table


def _caption(several: bool, losses: bool) -> str:
    lines = ["± standard error over documents, sentences or questions"]
    if several:
        lines.append("of the difference, paired: what makes one hard for both models cancels out")
    if losses:
        lines.append("loss in nats per token; ppl: e to it, comparable within one tokenizer")
    return "\n".join(lines)


def written_score(score: Score | None) -> str:
    """Mean and error, for a person."""
    if score is None:
        return NONE
    error = score.error
    return written(score.mean) + ("" if error is None else f" ± {written(error)}")


def written_change(change: Change | None) -> str:
    """For a person."""
    if change is None or change.mark is Mark.OTHER_UNITS:
        return NONE
    return written(change.delta, "+.3f") + (
        "" if change.error is None else f" ± {change.error:.3f}"
    )


def written_perplexity(line: Line) -> str:
    """From the first model to the last, of a loss."""
    if line.name != LOSS:
        return NONE
    ends = dict.fromkeys((0, len(line.scores) - 1))
    found = (line.scores[at] for at in ends)
    return " → ".join(
        NONE if one is None else written(perplexity(one.mean), ",.2f") for one in found
    )


def worst_table(worst: Sequence[Worst], label: str) -> Table:
    """The documents with the highest loss, the worst first."""
    table = Table(
        title=f"Highest losses in {label}",
        title_justify="left",
        caption="noise: its part of the variance of the domain's mean",
        caption_justify="left",
    )
    table.add_column("domain")
    table.add_column("document", overflow="fold")
    for name in ("loss", "tokens", "noise"):
        table.add_column(name, justify="right")
    for of in worst[:DOMAINS]:
        for one in of.documents:
            table.add_row(
                of.domain, one.name, written(one.loss), f"{one.tokens:,}", f"{one.noise:.0%}"
            )
    return table


def worst_lines(worst: Sequence[Worst]) -> list[str]:
    """What they carry of their domains' noise, where that is much."""
    return [
        f"{of.domain}: {len(of.documents)} of {of.of:,} documents carry {of.noise:.0%} of the noise"
        for of in worst[:DOMAINS]
        if of.noise >= SAID and of.of > 2 * WORST
    ]


def as_json(models: Models, worst: int = 10 * WORST) -> dict[str, Any]:
    """All of it for machines; numbers that are not finite are null.

    Args:
        models: as :func:`print_evaluations` takes them.
        worst: documents of a domain.
    """
    comparison = compare(models)
    return {
        "models": [
            {
                "label": label,
                "iteration": one.iteration,
                "consumed_samples": one.consumed_samples,
            }
            for label, one in models
        ],
        "lines": [_line(line) for line in comparison.lines],
        "compared": comparison.compared,
        "verdict": list(verdict(comparison)),
        "worst": [
            {
                "domain": of.domain,
                "loss": of.mean,
                "documents": of.of,
                "noise": of.noise,
                "worst": [vars(one) for one in of.documents],
            }
            for of in worst_documents(models[-1][1].scores, worst)
        ],
    }


def _line(line: Line) -> dict[str, Any]:
    change = line.change
    return {
        "score": line.name,
        "domain": line.domain,
        "higher_is_better": line.higher_is_better,
        "means": [None if one is None else finite(one.mean) for one in line.scores],
        "errors": [None if one is None else finite(one.error) for one in line.scores],
        "counts": [None if one is None else one.count for one in line.scores],
        "difference": None if change is None else finite(change.delta),
        "difference_error": None if change is None else finite(change.error),
        "chance": None if change is None else change.chance,
        "verdict": None if change is None else change.mark.value,
    }
