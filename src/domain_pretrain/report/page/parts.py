"""What the sections of a page are made of: a run, a domain's name, a table that scrolls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.experts_file import ExpertsTable
from domain_pretrain.records.record import Finding
from domain_pretrain.report.history import History
from domain_pretrain.report.page.markup import Markup, element
from domain_pretrain.report.palette import colour
from domain_pretrain.report.planned import Planned
from domain_pretrain.report.practice import Check

LONG = 100  # rows of a table that may wait
LINE = 34  # pixels of a row


@dataclass(frozen=True)
class Told:
    """A run as the page tells it.

    Attributes:
        name: of it.
        history: what happened in it.
        planned: what was to be read.
        findings: of its alarms.
        checks: what the rules of practice saw.
        evaluations: what its probes found, in order.
        experts: that its tokens went to at the last logged step; None where none were counted.
        places: of every domain of the page, its place, which decides its colour.
    """

    name: str
    history: History
    planned: Planned
    findings: Sequence[Finding]
    checks: Sequence[Check]
    evaluations: Sequence[Evaluated]
    experts: ExpertsTable | None
    places: Mapping[str, int]


def section(name: str, title: str, *content: Markup | None) -> Markup:
    """A part of the page that a link can lead to."""
    head = element("h2", title, id=f"{name}-title")
    return element("section", head, *content, id=name, aria_labelledby=f"{name}-title")


def scrolling(label: str, table: Markup, rows: int = 0) -> Markup:
    """A table that is wider than a phone scrolls by itself, also by keyboard."""
    # A browser lays out a long one when it comes into sight, and until then needs its height.
    style = f"contain-intrinsic-size:auto {LINE * rows}px" if rows > LONG else None
    name = "scrolling long" if rows > LONG else "scrolling"
    return element(
        "div", table, class_=name, style=style, tabindex="0", role="region", aria_label=label
    )


def domain_name(name: str, places: Mapping[str, int]) -> Markup:
    """A domain's name beside its colour."""
    place = places.get(name)
    dot = None
    if place is not None:
        style = f"--light:{colour(place)};--dark:{colour(place, dark=True)}"
        dot = element("span", class_="dot", style=style)
    return element("span", dot, name, class_="domain")


def short(value: float) -> str:
    """``12.3M``."""
    for size, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{sign}"
    return f"{value:.3g}"
