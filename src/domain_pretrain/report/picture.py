"""A picture of all domains' losses over a run, or over several phases one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from domain_pretrain.errors import ConfigError
from domain_pretrain.report.curves import Curve, Curves, XAxis, moving_average, read_curves
from domain_pretrain.report.spread import spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, distinct with any kind of colour vision; their yellow, invisible on white
# paper, is a dark purple here. A label at the end of each curve also names it.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4B2E83", "#000000")
INK, FAINT = "#333333", "#8C8C8C"
SMOOTH_FROM = 60  # windows: with more, each is drawn faintly below the moving average


def loss_picture(
    metrics_path: str | Path | None,
    out_png: str | Path,
    *,
    title: str = "Channel loss",
    phases: Sequence[tuple[str, str | Path]] = (),
    x: XAxis = "tokens",
) -> None:
    """Draw every domain's training loss (lines) and validation loss (points).

    Args:
        metrics_path: a metrics file or its folder; None where ``phases`` are given.
        out_png: the picture; the suffix may be any that matplotlib writes.
        title: shown above it.
        phases: (name, metrics file) of consecutive runs, on one axis, named where they begin.
        x: training tokens of all domains together, or iterations.

    Raises:
        ConfigError: matplotlib is missing, or there are no lines to draw.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(
            "a picture needs matplotlib: pip install 'domain-pretrain[demo]'"
        ) from error
    files = [(name, Path(path)) for name, path in phases]
    if metrics_path is not None:
        files.append(("", Path(metrics_path)))
    curves = read_curves(files, x)
    if not curves.train:
        raise ConfigError(
            f"no training lines in {', '.join(str(path) for _, path in files)}: nothing to draw"
        )
    figure = Figure(figsize=(10, 5.6), dpi=160)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.15)
    FigureCanvasAgg(figure)  # needs no display, and leaves pyplot's state alone
    axes = figure.add_subplot()
    colours = _colours(curves)
    for domain in sorted(curves.train, key=lambda name: name in colours):  # coloured ones on top
        _draw(axes, curves.train[domain], curves.valid.get(domain, []), colours.get(domain))
    _decorate(axes, title, x, curves)
    _label(axes, curves, colours)
    figure.savefig(out_png)


def _colours(curves: Curves) -> dict[str, str]:
    """A colour for each domain; with too many, for the broken ones and the highest at the end."""
    domains = list(curves.train)
    if len(domains) > len(COLOURS):
        domains.sort(key=lambda name: (not _broken(curves.train[name]), -_end(curves.train[name])))
        domains = domains[: len(COLOURS) - 1]
    return dict(zip(domains, COLOURS, strict=False))


def _smoothed(curve: Curve) -> list[float]:
    if len(curve.loss) <= SMOOTH_FROM:
        return curve.loss
    return moving_average(curve.loss, len(curve.loss) // 20)


def _end(curves: list[Curve]) -> float:
    """The last finite loss; minus infinity where none is."""
    losses = [loss for curve in curves for loss in curve.loss if math.isfinite(loss)]
    return losses[-1] if losses else -math.inf


def _broken(curves: list[Curve]) -> bool:
    return any(math.isnan(loss) for curve in curves for loss in curve.loss)


def _draw(axes: Axes, train: list[Curve], valid: list[Curve], colour: str | None) -> None:
    """One domain; without a colour it is one of many, in the background."""
    for curve in train:
        if colour is None:
            axes.plot(curve.x, _smoothed(curve), color="#CCCCCC", lw=0.6, zorder=1)
            continue
        if len(curve.loss) > SMOOTH_FROM:
            axes.plot(curve.x, curve.loss, color=colour, lw=0.7, alpha=0.28, zorder=2)
        axes.plot(curve.x, _smoothed(curve), color=colour, lw=1.9, zorder=3)
        broken = [at for at, loss in zip(curve.x, curve.loss, strict=True) if math.isnan(loss)]
        axes.plot(
            broken,
            [0.02] * len(broken),
            color=colour,
            ls="",
            marker="x",
            ms=6,
            transform=axes.get_xaxis_transform(),
        )
    for curve in valid if colour is not None else ():
        points = axes.plot(curve.x, curve.loss, color=colour, ls="", marker="o", zorder=4)
        # Not clipped: the last evaluation is on the right edge.
        points[0].set(markersize=4.2, markerfacecolor="white", markeredgewidth=1.1, clip_on=False)


def _decorate(axes: Axes, title: str, x: XAxis, curves: Curves) -> None:
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
    ends = [curve.x[-1] for domain in curves.train.values() for curve in domain]
    axes.set_xlim(0, max(ends))
    axes.margins(y=0.06)
    note = "lines: training, by domain" + ("   ○ validation" if curves.valid else "")
    if any(_broken(domain) for domain in curves.train.values()):
        note += "   × not finite"
    named = any(name for name, _ in curves.starts)
    axes.set_title(
        title, loc="left", color=INK, fontsize=14, fontweight="bold", pad=34 if named else 22
    )
    above = axes.get_xaxis_transform()
    axes.annotate(
        note,
        (0, 1),
        (0, 20 if named else 8),
        xycoords=above,
        textcoords="offset points",
        color=FAINT,
        fontsize=10,
    )
    for name, start in curves.starts:
        if start > 0:
            axes.axvline(start, color=FAINT, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.annotate(
            name,
            (start, 1),
            (4 if start > 0 else 0, 3),
            xycoords=above,
            textcoords="offset points",
            color=INK,
            fontsize=10,
            fontstyle="italic",
        )


def _label(axes: Axes, curves: Curves, colours: dict[str, str]) -> None:
    """Name each coloured curve at its end, with its last loss; no label covers another."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    ends = {domain: max(low, _end(curves.train[domain])) for domain in colours}
    domains = sorted(ends, key=lambda domain: ends[domain])
    heights = spread([ends[domain] for domain in domains], gap=(high - low) * 0.048)
    for domain, height in zip(domains, heights, strict=True):
        curve = curves.train[domain][-1]
        axes.annotate(
            f"{domain}  {curve.loss[-1]:.2f}"
            if math.isfinite(curve.loss[-1])
            else f"{domain}  NaN",
            xy=(curve.x[-1], ends[domain]),
            xytext=(1.025, (height - low) / (high - low)),
            textcoords="axes fraction",
            color=colours[domain],
            fontsize=10,
            fontweight="bold",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "relpos": (0, 0.5),
                "color": colours[domain],
                "lw": 0.7,
                "alpha": 0.6,
            },
        )
    hidden = len(curves.train) - len(colours)
    if hidden:
        axes.annotate(
            f"and {hidden} more", (1.025, -0.02), xycoords="axes fraction", color=FAINT, fontsize=10
        )
