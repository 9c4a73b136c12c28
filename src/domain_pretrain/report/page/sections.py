"""What a page tells beside its tables: numbers at a glance, alarms, practice checks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from domain_pretrain.records.reader import EVENTS_FILE
from domain_pretrain.records.record import Finding
from domain_pretrain.report.history import History
from domain_pretrain.report.page.markup import Markup, element, join
from domain_pretrain.report.page.parts import (
    Told,
    domain_name,
    section,
    short,
)
from domain_pretrain.report.practice import Check
from domain_pretrain.report.table import NONE, PART, written

MOST = 200  # findings on the page
OPEN = 3  # of them, shown in full from the start
FEW = 12  # domains of a check, shown from the start
FOLDERS = 2  # of a path, as many parts as are shown
FOLDED = 100  # more of them, behind a click


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
    return f"{written(start.value)} → {written(end.value)}"


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
        rest = element("p", f"and {len(found) - MOST:,} more in {EVENTS_FILE}", class_="more")
    return section("alarms", "Alarms", *articles, rest)


def _alarm(number: int, run: Told, one: Finding, *, several: bool, shown: bool) -> Markup:
    where = [f"iteration {one.iteration:,}", run.name if several else ""]
    head = element(
        "summary",
        element("span", f"#{number}", class_="number"),
        element("span", one.severity, class_=f"badge {one.severity}"),
        element("strong", one.rule.replace("_", " ")),
        domain_name(one.domain, run.places) if one.domain is not None else None,
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
    """Of each, what is told of it, and its text below: that has any length."""
    if not documents:
        return None
    return element(
        "figure",
        element("figcaption", "Documents, the worst first"),
        element("ol", *map(_document, documents)),
        class_="documents",
    )


def _document(document: Mapping[str, Any]) -> Markup:
    facts = [
        element("span", element("span", f"{key.replace('_', ' ')} ", class_="key"), _fact(value))
        for key, value in document.items()
        if key != "text"
    ]
    text = element("blockquote", _any(document["text"])) if "text" in document else None
    return element("li", element("p", *facts), text)


def _fact(value: Any) -> Markup | str:
    """A path by its end: folders above are in the way on a phone, and in the title."""
    if isinstance(value, str) and value.count("/") > FOLDERS:
        end = "/".join(value.split("/")[-FOLDERS:])
        return element("span", f"…/{end}", title=value)
    return _any(value)


def _any(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,.0f}"
    if isinstance(value, (list, tuple)) and all(isinstance(one, (int, float)) for one in value):
        return " to ".join(map(_any, value)) if len(value) == 2 else ", ".join(map(_any, value))
    return json.dumps(value, ensure_ascii=False)


def checks(runs: Sequence[Told]) -> Markup:
    """What practitioners would read off the curves."""
    parts = []
    for run in runs:
        found = [_check(one, run.places) for one in run.checks]
        nothing = None if found else element("p", "No rule of practice has anything to say.")
        head = element("h3", run.name) if len(runs) > 1 else None
        parts += [head, nothing, element("div", *found, class_="checks")]
    return section("checks", "Practice checks", *parts)


def _check(one: Check, places: Mapping[str, int]) -> Markup:
    rows = [
        element("li", domain_name(name, places) if name else None, " " if name else None, text)
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
