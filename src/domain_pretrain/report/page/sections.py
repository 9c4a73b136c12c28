"""What a page tells without a script: numbers at a glance, alarms, checks, tables."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from domain_pretrain.records.record import Finding
from domain_pretrain.report.history import History
from domain_pretrain.report.page.markup import Markup, element, join
from domain_pretrain.report.palette import colour
from domain_pretrain.report.planned import Planned
from domain_pretrain.report.practice import Check
from domain_pretrain.report.series import Mean
from domain_pretrain.report.table import ERRORS, PART, Summary, host_rows, summarise

MOST = 200  # findings on the page
OPEN = 3  # of them, shown in full from the start
FEW = 12  # domains of a check, shown from the start
FOLDED = 100  # more of them, behind a click
LONG = 100  # rows of a table that may wait
LINE = 34  # pixels of a row
NONE = "–"


@dataclass(frozen=True)
class Told:
    """A run as the page tells it.

    Attributes:
        name: of it.
        history: what happened in it.
        planned: what was to be read.
        findings: of its alarms.
        checks: what the rules of practice saw.
        places: of every domain of the page, its place, which decides its colour.
    """

    name: str
    history: History
    planned: Planned
    findings: Sequence[Finding]
    checks: Sequence[Check]
    places: Mapping[str, int]


def tiles(runs: Sequence[Told]) -> Markup:
    """The few numbers to begin with."""
    return element("dl", *_glance(runs), class_="tiles")


def _tile(term: str, values: Sequence[str], more: str = "", link: str | None = None) -> Markup:
    """One value, or one of each run below the other."""
    shown = [element("span", value) for value in values]
    content = [element("a", *shown, href=link)] if link else shown
    return element("div", element("dt", term), element("dd", *content, element("small", more)))


def _glance(runs: Sequence[Told]) -> Iterator[Markup]:
    histories = [run.history for run in runs]
    if len(runs) > 1:
        yield _tile("Runs", [run.name for run in runs])
    yield _tile("Domains", [f"{len(runs[0].places):,}"])
    yield _tile("Iterations", [f"{one.end_iteration:,}" for one in histories])
    yield _tile("Training tokens", [short(one.end_tokens) for one in histories])
    losses = [_ends(one) if "lm_loss" in one.host else NONE for one in histories]
    if set(losses) != {NONE}:
        yield _tile("lm loss, start → end", losses, "all domains together, nats")
    found = [one for run in runs for one in run.findings]
    errors = sum(one.severity == "error" for one in found)
    more = f"{errors:,} of them errors" if errors else ""
    yield _tile("Alarms", [f"{len(found):,}"], more, "#alarms" if found else None)


def _ends(history: History) -> str:
    start, end = history.host.ends("lm_loss", PART)
    return f"{_number(start.value)} → {_number(end.value)}"


def alarms(runs: Sequence[Told]) -> Markup | None:
    """What the alarms found, with evidence and documents; None where they found nothing."""
    found = [(run, one) for run in runs for one in run.findings]
    if not found:
        return None
    articles = [
        _alarm(number, run, one, several=len(runs) > 1, shown=number <= OPEN)
        for number, (run, one) in enumerate(found[:MOST], start=1)
    ]
    rest = None
    if len(found) > MOST:
        rest = element("p", f"and {len(found) - MOST:,} more in domain_events.jsonl", class_="more")
    return _section("alarms", "Alarms", *articles, rest)


def _alarm(number: int, run: Told, one: Finding, *, several: bool, shown: bool) -> Markup:
    where = [f"iteration {one.iteration:,}", run.name if several else ""]
    head = element(
        "summary",
        element("span", f"#{number}", class_="number"),
        element("span", one.severity, class_=f"badge {one.severity}"),
        element("strong", one.rule.replace("_", " ")),
        _domain(one.domain, run.places) if one.domain is not None else None,
        element("span", " · ".join(filter(None, where)), class_="where"),
        element("span", one.message, class_="message"),
    )
    facts = [
        join(element("dt", term), element("dd", text))
        for term, text in (("Likely cause", one.cause), ("What to try", one.advice))
        if text
    ]
    return element(
        "details",
        head,
        element("dl", *facts, class_="facts") if facts else None,
        _evidence(one.evidence),
        _documents(one.documents),
        class_="alarm",
        id=f"alarm-{number}",
        open=shown,
    )


def _evidence(evidence: Mapping[str, Any]) -> Markup | None:
    if not evidence:
        return None
    rows = [
        element("tr", element("th", key.replace("_", " "), scope="row"), element("td", _any(value)))
        for key, value in evidence.items()
    ]
    return element(
        "table", element("caption", "Evidence"), element("tbody", *rows), class_="evidence"
    )


def _documents(documents: Sequence[Mapping[str, Any]]) -> Markup | None:
    """A row for each, with whatever is told of it."""
    if not documents:
        return None
    keys = list(dict.fromkeys(key for one in documents for key in one))
    head = element("tr", *(element("th", key.replace("_", " "), scope="col") for key in keys))
    rows = [
        element("tr", *(element("td", _any(one[key]) if key in one else NONE) for key in keys))
        for one in documents
    ]
    return _scrolling(
        "Documents",
        element(
            "table",
            element("caption", "Documents, the worst first"),
            element("thead", head),
            element("tbody", *rows),
            class_="documents",
        ),
    )


def _any(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value):
        return ", ".join(map(_any, value))
    return json.dumps(value, ensure_ascii=False)


def checks(runs: Sequence[Told]) -> Markup:
    """What practitioners would read off the curves."""
    parts = []
    for run in runs:
        found = [_check(one, run.places) for one in run.checks]
        nothing = None if found else element("p", "No rule of practice has anything to say.")
        head = element("h3", run.name) if len(runs) > 1 else None
        parts += [head, nothing, element("div", *found, class_="checks")]
    return _section("checks", "Practice checks", *parts)


def _check(one: Check, places: Mapping[str, int]) -> Markup:
    rows = [
        element("li", _domain(name, places) if name else None, " " if name else None, text)
        for name, text in one.seen.items()
    ]
    rest = None
    if len(rows) > FEW:
        rest = element(
            "details",
            element("summary", f"{len(rows) - FEW:,} more domains"),
            element("ul", *rows[FEW : FEW + FOLDED]),
            element("p", f"… and {len(rows) - FEW - FOLDED:,} more: see the table")
            if len(rows) > FEW + FOLDED
            else None,
        )
    words = {"good": "as hoped", "note": "to know", "warning": "look at it"}
    return element(
        "article",
        element(
            "h4", element("span", words[one.level], class_=f"badge {one.level}"), f" {one.rule}"
        ),
        element("ul", *rows[:FEW]),
        rest,
        element("p", one.meaning, class_="meaning"),
        class_=f"check {one.level}",
    )


def tables(runs: Sequence[Told]) -> Markup:
    """Start → end of each domain; the host's numbers."""
    parts: list[Markup | None] = []
    for run in runs:
        several = len(runs) > 1
        parts += [element("h3", run.name) if several else None, _ends_table(run), _host_table(run)]
    note = (
        f"Start and end: means over the first and the last {PART:.0%} of a domain's windows, ± "
        f"their standard error. ≈: no change beyond {ERRORS} standard errors. Share: of the "
        "samples. ppl: of the validation loss where there is one, else of the training loss at "
        "the end."
    )
    return _section("table", "Start → end", *parts, element("p", note, class_="meaning"))


def _ends_table(run: Told) -> Markup:
    history = run.history
    summaries = summarise(history)
    total = math.fsum(history.samples.values())
    shares = run.planned.shares(0, _consumed(history)) if _consumed(history) else {}
    alarms = [one.domain for one in run.findings]
    columns: list[tuple[str, list[str]]] = [
        ("tokens", [f"{one.tokens:,.0f}" for one in summaries]),
        ("epochs", [_number(one.epochs, ",.2f") for one in summaries]),
        ("share", [_share(history.samples.get(one.domain, 0.0), total) for one in summaries]),
        ("plan", [_share(shares.get(one.domain), 1.0) for one in summaries]),
        ("train loss, start", [_mean(one.start) for one in summaries]),
        ("", ["≈" if one.unchanged else "→" for one in summaries]),
        ("train loss, end", [_mean(one.end) for one in summaries]),
        ("change", [_change(one.start, one.end) for one in summaries]),
        ("valid loss, first", [_first(history, one.domain) for one in summaries]),
        ("valid loss, last", [_number(one.valid) for one in summaries]),
        ("ppl", [_number(one.ppl, ",.2f") for one in summaries]),
        ("weight, start → end", [_weights(history, one.domain) for one in summaries]),
        ("alarms", [str(alarms.count(one.domain) or NONE) for one in summaries]),
    ]
    told = [(head, cells) for head, cells in columns if any(one != NONE for one in cells)]
    head = [element("th", "domain", scope="col"), *(_head(name) for name, _ in told)]
    rows = [
        element(
            "tr",
            element("th", _domain(one.domain, run.places), scope="row"),
            *(element("td", cells[at], class_=None if name else "way") for name, cells in told),
            data_domain=str(run.places[one.domain]),
        )
        for at, one in enumerate(summaries)
    ]
    return _domain_table(f"Domains of {run.name}", head, rows)


def _domain_table(caption: str, head: Sequence[Markup], rows: Sequence[Markup]) -> Markup:
    table = element(
        "table",
        element("caption", caption, class_="unseen"),
        element("thead", element("tr", *head)),
        element("tbody", *rows),
        class_="domains sortable",
    )
    return _scrolling(caption, table, rows=len(rows))


def _head(name: str) -> Markup:
    if not name:
        return element("th", element("span", "to", class_="unseen"), scope="col", class_="way")
    return element("th", name, scope="col")


def _host_table(run: Told) -> Markup | None:
    rows = [
        element("tr", element("th", title, scope="row"), *(element("td", cell) for cell in cells))
        for title, *cells in host_rows(run.history)
    ]
    if not rows:
        return None
    head = [element("th", name, scope="col") for name in ("", "start", "end", "least", "largest")]
    table = element(
        "table",
        element("caption", f"The host's numbers in {run.name}", class_="unseen"),
        element("thead", element("tr", *head)),
        element("tbody", *rows),
        class_="host",
    )
    return _scrolling("The host's numbers", table)


def comparison(runs: Sequence[Told]) -> Markup | None:
    """Losses at the end of several runs, beside that of the first; None of a single run."""
    if len(runs) < 2:
        return None
    summaries = [{one.domain: one for one in summarise(run.history)} for run in runs]
    head = [element("th", "domain", scope="col")]
    for at, run in enumerate(runs):
        head.append(element("th", f"{run.name}: train, end", scope="col"))
        head.append(element("th", f"{run.name}: valid, last", scope="col"))
        if at:
            head.append(element("th", f"{run.name} − {runs[0].name}", scope="col"))
    rows = []
    for name, place in runs[0].places.items():
        cells = []
        for at, of in enumerate(summaries):
            one, first = of.get(name), summaries[0].get(name)
            cells += [_mean(one.end) if one else NONE, _number(one.valid if one else None)]
            if at:
                cells.append(_difference(first, one))
        rows.append(
            element(
                "tr",
                element("th", _domain(name, runs[0].places), scope="row"),
                *(element("td", cell) for cell in cells),
                data_domain=str(place),
            )
        )
    note = (
        f"The difference is of the training losses at the end, ± its standard error; in brackets "
        f"where it is within {ERRORS} of those, which may be chance. Windows of two runs that "
        "read other samples differ by that, too."
    )
    return _section(
        "comparison",
        "Comparison of runs",
        _domain_table("Losses at the end of each run", head, rows),
        element("p", note, class_="meaning"),
    )


def _difference(first: Summary | None, other: Summary | None) -> str:
    if first is None or other is None or first.end is None or other.end is None:
        return NONE
    change = other.end.value - first.end.value
    if math.isnan(change):
        return NONE
    if first.end.error is None or other.end.error is None:
        return f"{change:+.3f}"
    error = math.hypot(first.end.error, other.end.error)
    shown = f"{change:+.3f} ± {error:.3f}"
    return shown if abs(change) > ERRORS * error else f"({shown})"


def _consumed(history: History) -> int:
    if "consumed_samples" not in history.host:
        return 0
    last = history.host.last("consumed_samples")
    return int(last) if math.isfinite(last) else 0


def _first(history: History, name: str) -> str:
    """Its first evaluation, where there are several."""
    if name not in history.valid:
        return NONE
    curve = history.valid.curve(name)
    return _number(float(curve.mean[0])) if len(curve.mean) > 1 else NONE


def _weights(history: History, name: str) -> str:
    if name not in history.weights:
        return NONE
    start, end = history.weights.ends(name, PART)
    return f"{_number(start.value)} → {_number(end.value)}"


def _share(part: float | None, total: float) -> str:
    return NONE if part is None or not total else f"{part / total:.2%}"


def _change(start: Mean | None, end: Mean | None) -> str:
    if start is None or end is None or not start.value or math.isnan(end.value / start.value):
        return NONE
    return f"{end.value / start.value - 1:+.1%}"


def _mean(mean: Mean | None) -> str:
    if mean is None:
        return NONE
    return _number(mean.value) + ("" if mean.error is None else f" ± {mean.error:.3f}")


def _number(value: float | None, spec: str = ".3f") -> str:
    if value is None:
        return NONE
    return "NaN" if math.isnan(value) else format(value, spec)


def short(value: float) -> str:
    """``12.3M``."""
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.3g}"


def _domain(name: str, places: Mapping[str, int]) -> Markup:
    """A domain's name beside its colour."""
    place = places.get(name)
    dot = None
    if place is not None:
        style = f"--light:{colour(place)};--dark:{colour(place, dark=True)}"
        dot = element("span", class_="dot", style=style)
    return element("span", dot, name, class_="domain")


def _section(name: str, title: str, *content: Markup | None) -> Markup:
    head = element("h2", title, id=f"{name}-title")
    return element("section", head, *content, id=name, aria_labelledby=f"{name}-title")


def _scrolling(label: str, table: Markup, rows: int = 0) -> Markup:
    """A table that is wider than a phone scrolls by itself, also by keyboard."""
    # A browser lays out a long one when it comes into sight, and until then needs its height.
    style = f"contain-intrinsic-size:auto {LINE * rows}px" if rows > LONG else None
    name = "scrolling long" if rows > LONG else "scrolling"
    return element(
        "div", table, class_=name, style=style, tabindex="0", role="region", aria_label=label
    )
