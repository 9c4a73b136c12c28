"""A page's tables: each domain from start to end, the host's numbers, runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from domain_pretrain.report.history import History
from domain_pretrain.report.page.markup import Markup, element
from domain_pretrain.report.page.parts import Told, domain_name, scrolling, section
from domain_pretrain.report.series import LEAST, MOST, Mean
from domain_pretrain.report.table import (
    ERRORS,
    NONE,
    PART,
    Summary,
    average_note,
    host_rows,
    summarise,
    written,
    written_mean,
)


def tables(runs: Sequence[Told]) -> Markup:
    """Start → end of each domain; the host's numbers."""
    parts: list[Markup | None] = []
    for run in runs:
        several = len(runs) > 1
        parts += [element("h3", run.name) if several else None, _ends_table(run), _host_table(run)]
    note = (
        f"Start and end: means over the first and the last {PART:.0%} of a domain's windows (at "
        f"least {LEAST}, at most half of them and {MOST}), ± their standard error. ≈: no change "
        f"beyond {ERRORS} standard errors. Share: of the samples. ppl: of the validation loss "
        "where there is one, else of the training loss at the end. ± of "
        "a validation loss: over the samples of evaluate.samples."
    )
    averages = average_note([(run.name, run.history) for run in runs])
    return section(
        "table",
        "Start → end",
        element("p", averages) if averages else None,
        *parts,
        element("p", note, class_="meaning"),
    )


def _ends_table(run: Told) -> Markup:
    history = run.history
    summaries = summarise(history)
    total = math.fsum(history.samples.values())
    shares = run.planned.shares(0, _consumed(history)) if _consumed(history) else {}
    alarms = [one.domain for one in run.findings]
    columns: list[tuple[str, list[str]]] = [
        ("tokens", [f"{one.tokens:,.0f}" for one in summaries]),
        ("epochs", [written(one.epochs, ",.2f") for one in summaries]),
        ("share", [_share(history.samples.get(one.domain, 0.0), total) for one in summaries]),
        ("plan", [_share(shares.get(one.domain), 1.0) for one in summaries]),
        ("train loss, start", [written_mean(one.start) for one in summaries]),
        ("", ["≈" if one.unchanged else "→" for one in summaries]),
        ("train loss, end", [written_mean(one.end) for one in summaries]),
        ("change", [_change(one.start, one.end) for one in summaries]),
        ("valid loss, first", [_first(history, one.domain) for one in summaries]),
        ("valid loss, last", [written_mean(one.valid_mean) for one in summaries]),
        ("ppl", [written(one.ppl, ",.2f") for one in summaries]),
        ("weight, start → end", [_weights(history, one.domain) for one in summaries]),
        ("alarms", [str(alarms.count(one.domain) or NONE) for one in summaries]),
    ]
    told = [(head, cells) for head, cells in columns if any(one != NONE for one in cells)]
    head = [element("th", "domain", scope="col"), *(_head(name) for name, _ in told)]
    rows = [
        element(
            "tr",
            element("th", domain_name(one.domain, run.places), scope="row"),
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
    return scrolling(caption, table, rows=len(rows))


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
    return scrolling("The host's numbers", table)


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
            cells += [written_mean(one.end) if one else NONE, written(one.valid if one else None)]
            if at:
                alike = len(runs[0].history.averages | runs[at].history.averages) == 1
                cells.append(_difference(first, one) if alike else NONE)
        rows.append(
            element(
                "tr",
                element("th", domain_name(name, runs[0].places), scope="row"),
                *(element("td", cell) for cell in cells),
                data_domain=str(place),
            )
        )
    note = (
        f"The difference is of the training losses at the end, ± its standard error; in brackets "
        f"where it is within {ERRORS} of those, which may be chance. Windows of two runs that "
        "read other samples differ by that, too."
    )
    return section(
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
    several = history.valid.count(name) > 1
    return written(history.valid.first(name)) if several else NONE


def _weights(history: History, name: str) -> str:
    if name not in history.weights:
        return NONE
    start, end = history.weights.ends(name, PART)
    return f"{written(start.value)} → {written(end.value)}"


def _share(part: float | None, total: float) -> str:
    return NONE if part is None or not total else f"{part / total:.2%}"


def _change(start: Mean | None, end: Mean | None) -> str:
    if start is None or end is None or not start.value or math.isnan(end.value / start.value):
        return NONE
    return f"{end.value / start.value - 1:+.1%}"
