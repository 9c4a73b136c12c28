"""The picture: what each treatment changes, and how linupper's weights move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from textwrap import wrap
from typing import Any

from arms import DOMAINS, TREATMENTS
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paired import Row, difference, domain_loss, mean_loss, rows_of

from domain_pretrain.report.picture import COLOURS, FAINT, INK

COLOUR = dict(zip(DOMAINS, COLOURS, strict=False))


def draw(result: Mapping[str, Any], path: Path) -> None:
    """Two rows of panels, a column for each arm."""
    arms = result["arms"]
    figure = Figure(figsize=(3.9 * len(arms), 6.2), dpi=160, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, len(arms), squeeze=False, sharey="row")
    for column, of in enumerate(arms.values()):
        _changes(panels[0][column], of["runs"])
        name, text = of["title"].split(": ", 1)
        title = "\n".join([name, *wrap(text, 44)])
        panels[0][column].set_title(title, loc="left", fontsize=9.5, color=INK)
        _weights(panels[1][column], rows_of(of["runs"], "linupper"))
    panels[1][0].set_ylim(bottom=0)  # last: it ends the scaling that all panels of a row share
    panels[0][0].set_ylabel("validation loss − uniform's (nats)", color=INK, fontsize=9)
    panels[1][0].set_ylabel("linupper's multiplier", color=INK, fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
    figure.savefig(path)


def _changes(axes: Axes, runs: Sequence[Row]) -> None:
    """Paired differences from uniform, with standard errors: each domain, and their mean."""
    treatments = [name for name in TREATMENTS if name != "uniform" and rows_of(runs, name)]
    series = [(name, domain_loss(name), COLOUR[name], "o", 4.0) for name in DOMAINS]
    for place, (label, measure, colour, marker, size) in enumerate(
        [*series, ("mean of the domains", mean_loss, INK, "D", 6.0)]
    ):
        estimates = [difference(runs, name, "uniform", measure) for name in treatments]
        axes.errorbar(
            [at + 0.16 * (place - 1.5) for at in range(len(treatments))],
            [estimate.mean for estimate in estimates],
            yerr=[estimate.error for estimate in estimates],
            color=colour,
            marker=marker,
            ms=size,
            ls="",
            lw=1.4,
            capsize=2.5,
            label=label,
        )
    axes.axhline(0, color=FAINT, lw=1)
    names = [TREATMENTS[name].replace(" ", "\n").replace(",", "") for name in treatments]
    axes.set_xticks(range(len(treatments)), names)
    axes.set_xlim(-0.5, len(treatments) - 0.5)
    _plain(axes)


def _weights(axes: Axes, rows: Sequence[Row]) -> None:
    """Every seed faintly, their mean boldly."""
    for name in DOMAINS:
        curves = [{at: ws[name] for at, ws in row["curve"] if name in ws} for row in rows]
        for curve in curves:
            axes.plot(list(curve), list(curve.values()), color=COLOUR[name], lw=0.6, alpha=0.3)
        common = sorted(set.intersection(*map(set, curves)))
        mean = [fmean(curve[at] for curve in curves) for at in common]
        axes.plot(common, mean, color=COLOUR[name], lw=1.9)
    axes.axhline(1, color=FAINT, lw=1)
    axes.set_xlabel("step", color=INK, fontsize=9)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=INK, labelsize=8.5)
