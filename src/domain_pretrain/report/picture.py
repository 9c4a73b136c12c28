"""A picture of all domains' losses: of a run, of consecutive runs, or of several to compare."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.report.curves import Run, XAxis, domains_of, moving_average, place
from domain_pretrain.report.fonts import fonts_for
from domain_pretrain.report.history import History
from domain_pretrain.report.palette import COLOURS, colour
from domain_pretrain.report.series import Curve, Floats
from domain_pretrain.report.spread import spread
from domain_pretrain.report.table import PART
from domain_pretrain.whole_file import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT = "#333333", "#8C8C8C"
SMOOTH_FROM = 60  # windows: with more, each is drawn faintly below the moving average
# Characters in a name: what is longer leaves no room for the curves.
LABEL, LEGEND, NOTE = 36, 100, 40
# For the runs that are compared: of their lines, and of the points of their evaluations.
STYLES: tuple[tuple[str, str], ...] = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))


def loss_picture(
    runs: Sequence[tuple[str, History]],
    out_png: str | Path,
    *,
    title: str = "Channel loss",
    x: XAxis = "tokens",
    compare: bool = False,
) -> None:
    """Draw every domain's training loss (lines) and validation loss (points).

    Args:
        runs: (name, what happened) of consecutive runs, on one axis, named where they begin.
        out_png: the picture; the suffix may be any that matplotlib writes, without one it is PNG.
        title: shown above it.
        x: training tokens of all domains together, or iterations.
        compare: draw the runs over each other from one start, each in a line style of its own.

    Raises:
        ConfigError: as :func:`check_picture` has it, or there are no lines to draw.
    """
    out = Path(out_png)
    check_picture(out)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    placed = place(runs, x, compare=compare)
    domains = domains_of(placed)
    trained = [name for name in domains if any(name in r.history.train for r in placed)]
    if not trained:
        raise ConfigError("there are no training lines: nothing to draw")
    coloured = shown(placed, trained)
    colours = {name: colour(place) for place, name in enumerate(domains) if name in coloured}
    texts = [title, *coloured, *(run.name for run in placed)]
    texts += [mark.event.name for run in placed for mark in run.history.marks]
    with fonts_for(texts):
        figure = Figure(figsize=(10, 5.6), dpi=160)
        figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
        FigureCanvasAgg(figure)  # needs no display, and leaves pyplot's state alone
        axes = figure.add_subplot()
        for run, (style, point) in zip(placed, _styles(placed, compare=compare), strict=True):
            for name in sorted(trained, key=lambda name: name in coloured):  # coloured ones on top
                _draw(axes, run, name, colours.get(name), style, point, faintly=not compare)
        _mark(axes, placed)
        _decorate(axes, title, x, placed, compare=compare)
        _label(axes, placed, colours, compare=compare, hidden=len(trained) - len(coloured))
        drawn = BytesIO()
        figure.savefig(drawn, format=_format(out))
    try:
        with whole_file(out) as file:
            file.write(drawn.getbuffer())
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error


def check_picture(out: Path) -> None:
    """That a picture can be drawn in this format, before what is drawn has been read.

    Raises:
        ConfigError: matplotlib is missing, or has no such format.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "a picture needs matplotlib: pip install 'domain-pretrain[demo]'"
        ) from error
    known = FigureCanvasAgg.get_supported_filetypes()
    if _format(out) not in known:
        raise ConfigError(
            f"cannot draw {out}: matplotlib writes no .{_format(out)}; give a name that ends in "
            f"one of .{', .'.join(sorted(known))}"
        )


def _format(out: Path) -> str:
    return out.suffix[1:].lower() or "png"


def _styles(runs: Sequence[Run], *, compare: bool) -> list[tuple[str, str]]:
    return [STYLES[number % len(STYLES) if compare else 0] for number in range(len(runs))]


def shown(runs: Sequence[Run], domains: list[str]) -> set[str]:
    """The domains with a colour; of too many, the broken ones and the highest at the end."""
    if len(domains) <= len(COLOURS):
        return set(domains)

    def urgency(name: str) -> tuple[bool, float]:
        histories = [run.history for run in runs if name in run.history.train]
        broken = any(history.train.curve(name).broken.any() for history in histories)
        ends = [_end(history, name) for history in histories]
        return broken, max((end for end in ends if math.isfinite(end)), default=-math.inf)

    return set(sorted(domains, key=urgency, reverse=True)[: len(COLOURS) - 1])


def _end(history: History, name: str) -> float:
    """The loss at the end, as the table gives it."""
    return history.train.ends(name, PART)[1].value


def _smoothed(mean: Floats) -> Floats:
    return moving_average(mean, len(mean) // 20) if len(mean) > SMOOTH_FROM else mean


def _draw(
    axes: Axes, run: Run, name: str, colour: str | None, style: str, point: str, *, faintly: bool
) -> None:
    """One domain of one run; without a colour it is one of many, in the background."""
    history = run.history
    if name in history.train:
        curve = history.train.curve(name)
        at, line = run.of(curve), _smoothed(curve.mean)
        if colour is None:
            axes.plot(at, line, color="#CCCCCC", lw=0.6, ls=style, zorder=1)
            return
        if faintly and len(curve.mean) > SMOOTH_FROM:
            # Through the lowest and the highest window of each bucket, so that no spike is lost.
            extent = np.column_stack([curve.low, curve.high]).ravel()
            axes.plot(np.repeat(at, 2), extent, color=colour, lw=0.7, alpha=0.28, zorder=2)
        axes.plot(at, line, color=colour, lw=1.9, ls=style, zorder=3)
        _cross(axes, at, curve, colour)
    if colour is not None and name in history.valid:
        curve = history.valid.curve(name)
        points = axes.plot(run.of(curve), curve.mean, color=colour, ls="", marker=point, zorder=4)
        # Not clipped: the last evaluation is on the right edge.
        points[0].set(markersize=4.2, markerfacecolor="white", markeredgewidth=1.1, clip_on=False)


def _cross(axes: Axes, at: Floats, curve: Curve, colour: str) -> None:
    """A cross at the bottom where a loss was not finite."""
    broken = at[curve.broken > 0]
    bottom = axes.get_xaxis_transform()
    axes.plot(
        broken,
        np.full(broken.shape, 0.02),
        color=colour,
        ls="",
        marker="x",
        ms=6,
        transform=bottom,
    )


def _mark(axes: Axes, runs: Sequence[Run]) -> None:
    """A dotted line where something happened; a resume needs no name."""
    names: dict[float, list[str]] = {}
    for run in runs:
        for mark in run.history.marks:
            names.setdefault(run.at(mark), []).append(mark.event.name)
    for at, here in names.items():
        axes.axvline(at, color=FAINT, lw=0.8, ls=(0, (1, 3)), zorder=1)
        axes.annotate(
            shorten(", ".join(name for name in dict.fromkeys(here) if name != "resume"), NOTE),
            (at, 0),
            (2, 4),
            xycoords=axes.get_xaxis_transform(),
            textcoords="offset points",
            color=FAINT,
            fontsize=7,
            rotation=90,
            va="bottom",
        )


def _decorate(axes: Axes, title: str, x: XAxis, runs: Sequence[Run], *, compare: bool) -> None:
    from matplotlib.ticker import EngFormatter

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=INK, labelsize=10)
    axes.tick_params(axis="x", length=3, color=FAINT)
    axes.set_ylabel("loss (nats)", color=INK, fontsize=10)
    axes.set_xlabel("training tokens" if x == "tokens" else "iteration", color=INK, fontsize=10)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlim(0, max(run.end for run in runs))
    axes.margins(y=0.06)
    named = any(run.name for run in runs)
    axes.set_title(
        title, loc="left", color=INK, fontsize=14, fontweight="bold", pad=34 if named else 22
    )
    above = axes.get_xaxis_transform()
    axes.annotate(
        _note(runs),
        (0, 1),
        (0, 20 if named else 8),
        xycoords=above,
        textcoords="offset points",
        color=FAINT,
        fontsize=10,
    )
    if compare:
        _name_styles(axes, runs)
        return
    for run in runs:
        if run is not runs[0]:
            axes.axvline(run.begin, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            shorten(run.name, NOTE),
            (run.begin, 1),
            (4 if run is not runs[0] else 0, 3),
            xycoords=above,
            textcoords="offset points",
            color=INK,
            fontsize=10,
            fontstyle="italic",
        )


def _note(runs: Sequence[Run]) -> str:
    """What the signs in the picture mean."""
    histories = [run.history for run in runs]
    note = "lines: training, by domain"
    if any(history.valid.names for history in histories):
        note += "   ○ validation"
    train = [history.train for history in histories]
    if any(series.curve(name).broken.any() for series in train for name in series.names):
        note += "   × not finite"
    if any(mark.event.name == "resume" for history in histories for mark in history.marks):
        note += "   ┊ resumed"
    return note


def _name_styles(axes: Axes, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=INK, ls=style, lw=1.5) for style, _ in _styles(runs, compare=True)
    ]
    legend = axes.legend(
        handles,
        [""] * len(runs),
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        borderaxespad=0.1,
        borderpad=0,
        ncols=len(runs),
        frameon=False,
        labelcolor=INK,
        fontsize=10,
    )
    room = max(4, LEGEND // len(runs) - 8)
    for run, text in zip(runs, legend.get_texts(), strict=True):
        text.set_text(shorten(run.name, room))  # as a label, a name that begins with _ is left out


def _label(
    axes: Axes, runs: Sequence[Run], colours: dict[str, str], *, compare: bool, hidden: int
) -> None:
    """Name each coloured curve at its end, with the loss there; no label covers another."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    having = {name: [run for run in runs if name in run.history.train] for name in colours}
    heights = {name: _height(having[name][-1], name, low) for name in colours}
    order = sorted(heights, key=lambda name: heights[name])
    apart = spread([heights[name] for name in order], gap=(high - low) * 0.048)
    for name, height in zip(order, apart, strict=True):
        last = having[name][-1]
        ends = [_end(run.history, name) for run in (having[name] if compare else [last])]
        losses = " / ".join("NaN" if math.isnan(end) else f"{end:.2f}" for end in ends)
        shown = shorten(name, max(8, LABEL - len(losses)))
        axes.annotate(
            f"{shown}  {losses}",
            xy=(float(last.of(last.history.train.curve(name))[-1]), heights[name]),
            xytext=(1.025, (height - low) / (high - low)),
            textcoords="axes fraction",
            color=colours[name],
            fontsize=10,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": colours[name],
                "lw": 0.7,
                "alpha": 0.6,
            },
        )
    if hidden:
        below = min(0.0, (apart[0] - low) / (high - low)) - 0.05
        axes.annotate(
            f"and {hidden} more",
            (1.025, below),
            xycoords="axes fraction",
            color=FAINT,
            fontsize=10,
            va="center",
        )


def _height(run: Run, name: str, lowest: float) -> float:
    """Where the drawn line of a domain ends; at the bottom where it was never finite."""
    line = _smoothed(run.history.train.curve(name).mean)
    finite = line[np.isfinite(line)]
    return max(lowest, float(finite[-1])) if finite.size else lowest
