"""The picture: the front of the constant blends, and where one run of ``hold`` lands on it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from statistics import fmean

from arms import ARMS, FRONT, HOLD, STATIC
from front import Point, at
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from plan import Plan
from table import Row, rows

from domain_pretrain.report.picture import COLOURS, FAINT, INK

# Besides the front; a picture with all of them could not be read.
SHOWN = (*HOLD, "ramp-up", "ramp-down", "linupper-1")


def draw(plan: Plan, path: Path) -> None:
    """Means over the confirmation seeds; nothing is drawn as long as there are none."""
    found = {row.arm: row for row in rows(plan)}
    # Means over the same seeds, so that a distance in the picture is one of pairs.
    shown = [found[arm] for arm in (*STATIC, *SHOWN) if arm in found]
    seeds = set.intersection(*(set(row.seeds) for row in shown)) if shown else set()
    front = [mean(found[arm], seeds) for arm in STATIC if arm in found] if seeds else []
    if len(front) < len(FRONT):
        print("no picture: no seed has all that it shows yet")
        return
    figure = Figure(figsize=(6.4, 4.4), dpi=160, facecolor="white")
    figure.set_layout_engine("constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _front(axes, front)
    for arm in SHOWN:
        if arm in found:
            _arm(axes, plan, arm, mean(found[arm], seeds), front)
    axes.set_xlabel("what general text has lost (nats a token)", color=INK, fontsize=9)
    axes.set_ylabel("loss of code and maths (nats a token)", color=INK, fontsize=9)
    axes.margins(x=0.14, y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(FAINT)
    axes.tick_params(length=0, labelcolor=INK, labelsize=8.5)
    figure.savefig(path)


def mean(row: Row, seeds: Collection[int]) -> Point:
    points = [one for seed, one in zip(row.seeds, row.points, strict=True) if seed in seeds]
    return fmean(risen for risen, _ in points), fmean(target for _, target in points)


def _front(axes: Axes, front: list[Point]) -> None:
    low, high = min(front)[0], max(front)[0]
    places = [low + (high - low) * part / 100 for part in range(101)]
    axes.plot(places, [at(front, place) for place in places], color=INK, lw=1.6)
    axes.plot(*zip(*front, strict=True), color=INK, marker="o", ms=4, ls="")
    for share, where in zip(FRONT, front, strict=True):
        _label(axes, f"{share:.0%}", where, INK, below=False)
    _label(axes, "constant blends, by general's share", front[-2], INK, below=False, lines=2)


def _arm(axes: Axes, plan: Plan, arm: str, where: Point, front: list[Point]) -> None:
    number = ARMS[arm].epsilon
    if number is None:
        axes.plot(*where, color=INK, marker="s", ms=4, ls="", mfc="white")
        _label(axes, ARMS[arm].title, where, INK, below=where[1] < at(front, where[0]))
        return
    epsilon = plan.epsilons[number]
    axes.axvline(epsilon, color=COLOURS[0], lw=0.8, ls=":")
    axes.plot(*where, color=COLOURS[0], marker="D", ms=7, ls="")
    _label(axes, f"hold, ε = {epsilon:g}", where, COLOURS[0], below=True)


def _label(
    axes: Axes, text: str, where: Point, colour: str, *, below: bool, lines: int = 1
) -> None:
    axes.annotate(
        text,
        where,
        xytext=(-8, -14) if below else (5, 12 * lines - 7),
        ha="right" if below else "left",
        textcoords="offset points",
        fontsize=8,
        color=colour,
    )
