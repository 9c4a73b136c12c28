"""What the probes found, before and after, and on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence

from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.report.compare import Line, compare, verdict
from domain_pretrain.report.evaluations import (
    WORST,
    models_of,
    written_change,
    written_perplexity,
    written_score,
)
from domain_pretrain.report.page.markup import Markup, element
from domain_pretrain.report.page.parts import Told, domain_name, scrolling, section
from domain_pretrain.report.table import NONE, written
from domain_pretrain.report.worst import worst_documents

WIDTH, HEIGHT, EDGE = 120, 28, 3  # of a curve, in pixels


def evaluations(runs: Sequence[Told]) -> Markup | None:
    """The table of every run that has any; None where no run was asked anything."""
    parts: list[Markup | None] = []
    for run in runs:
        if run.evaluations:
            parts += [
                element("h3", run.name) if len(runs) > 1 else None,
                *_of_run(run),
            ]
    if not parts:
        return None
    note = (
        "± standard error over documents, sentences or questions; that of a difference is paired: "
        "what makes one of them hard for both models cancels out. The curve goes through all "
        "evaluations of the run, by iteration, between its own lowest and highest. ppl is e to "
        "the loss."
    )
    return section("evaluations", "Evaluations", *parts, element("p", note, class_="meaning"))


def _of_run(run: Told) -> list[Markup | None]:
    every = run.evaluations
    ends = models_of([every[0], every[-1]] if len(every) > 1 else every)
    comparison = compare(ends)
    several = len(ends) > 1
    head = ["score", *comparison.labels, *(("", "change", "", "ppl") if several else ("ppl",))]
    rows = []
    for line in comparison.lines:
        cells: list[str | Markup | None] = [line.name, *map(written_score, line.scores)]
        if several:
            cells += [_course(every, line), written_change(line.change)]
            cells.append(line.change.mark.value if line.change else NONE)
        cells.append(written_perplexity(line))
        rows.append(
            element(
                "tr",
                element("th", domain_name(line.domain, run.places), scope="row"),
                *(element("td", cell) for cell in cells),
            )
        )
    table = element(
        "table",
        element("caption", f"Evaluations of {run.name}", class_="unseen"),
        element("thead", element("tr", *(_head(name) for name in ("domain", *head)))),
        element("tbody", *rows),
        class_="domains",
    )
    said = [element("li", text) for text in verdict(comparison)]
    return [
        scrolling(f"Evaluations of {run.name}", table, rows=len(rows)),
        element("ul", *said) if said else None,
        _worst(run),
    ]


def _head(name: str) -> Markup:
    return element("th", name or element("span", "course", class_="unseen"), scope="col")


def _course(every: Sequence[Evaluated], line: Line) -> Markup | None:
    """A curve of all evaluations."""
    points = [
        (one.iteration, score.mean)
        for one in every
        for score in one.scores
        if (score.name, score.domain) == (line.name, line.domain) and math.isfinite(score.mean)
    ]
    if len(points) < 2:
        return None
    (x0, x1), (y0, y1) = ((min(of), max(of)) for of in zip(*points, strict=True))

    def at(x: float, y: float) -> str:
        across = EDGE + (x - x0) / ((x1 - x0) or 1) * (WIDTH - 2 * EDGE)
        down = HEIGHT - EDGE - ((y - y0) / (y1 - y0) if y1 > y0 else 0.5) * (HEIGHT - 2 * EDGE)
        return f"{across:.1f},{down:.1f}"

    curve = " ".join(at(x, y) for x, y in points)
    return element(
        "svg",
        element("polyline", points=curve, fill="none", stroke="currentColor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        width=str(WIDTH),
        height=str(HEIGHT),
        role="img",
        aria_label=f"{len(points)} evaluations, lowest {written(y0)}, highest {written(y1)}",
    )


def _worst(run: Told) -> Markup | None:
    """The last model's documents with the highest loss."""
    worst = worst_documents(run.evaluations[-1].scores, WORST)
    rows = [
        element(
            "tr",
            element("th", domain_name(of.domain, run.places), scope="row"),
            *map(_cell, (one.name, written(one.loss), f"{one.tokens:,}", f"{one.noise:.0%}")),
        )
        for of in worst
        for one in of.documents
    ]
    if not rows:
        return None
    head = [_head(name) for name in ("domain", "document", "loss", "tokens", "part of the noise")]
    table = element(
        "table",
        element("caption", "Documents with the highest loss, the worst first"),
        element("thead", element("tr", *head)),
        element("tbody", *rows),
        class_="documents",
    )
    return scrolling("Documents with the highest loss", table, rows=len(rows))


def _cell(text: str) -> Markup:
    return element("td", text)
