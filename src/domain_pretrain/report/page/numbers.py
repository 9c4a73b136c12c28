"""What the curves of a page are drawn from: JSON values, and the numbers packed beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.report.curves import Run, XAxis, domains_of, place
from domain_pretrain.report.history import History
from domain_pretrain.report.page.packing import Packing
from domain_pretrain.report.palette import colour
from domain_pretrain.report.picture import shown
from domain_pretrain.report.planned import Planned
from domain_pretrain.report.series import Floats, Grid, Series

BUCKETS = 500  # of a curve: a screen has not many more columns for it
AXES: tuple[XAxis, XAxis] = ("tokens", "iterations")


def numbers(
    named: Sequence[tuple[str, History]],
    planned: Sequence[Planned],
    findings: Sequence[Sequence[Finding]],
    packing: Packing,
    *,
    x: XAxis,
    compare: bool,
) -> dict[str, Any]:
    """Of all runs.

    Args:
        named, planned, findings: of each run.
        packing: takes the numbers.
        x: the axis to begin with.
        compare: whether the runs begin at the same place, not one after the other.
    """
    axes = {axis: place(named, axis, compare=compare) for axis in AXES}
    runs = axes["tokens"]
    domains = domains_of(runs)
    places = {name: number for number, name in enumerate(domains)}
    told = {one.domain for found in findings for one in found}
    chosen = shown(runs, domains) | {name for name in domains if name in told}
    return {
        "x": x,
        "compare": compare,
        "domains": [
            {"name": name, "light": colour(at), "dark": colour(at, dark=True)}
            for at, name in enumerate(domains)
        ],
        "shown": [places[name] for name in domains if name in chosen],
        "runs": [
            {
                "name": run.name,
                "start": {axis: axes[axis][at].start for axis in AXES},
                "begin": {axis: axes[axis][at].begin for axis in AXES},
                "end": {axis: axes[axis][at].end for axis in AXES},
                "curves": _curves(run.history, planned[at], places, packing),
                "marks": [*_events(run), *_alarms(run.history, findings[at], places)],
            }
            for at, run in enumerate(runs)
        ],
    }


def _curves(
    history: History, planned: Planned, places: Mapping[str, int], packing: Packing
) -> dict[str, Any]:
    """By the name of a chart; without those of which the run has nothing."""
    found = {
        key: _packed(series.grid(BUCKETS), places, packing)
        for key, series in (
            ("train", history.train),
            ("valid", history.valid),
        )
        if series.names
    }
    if history.counts.names:
        grid = history.counts.grid(BUCKETS)
        found["shares"] = _plain(grid, _shares(grid), grid.names, places, packing)
        plan = _plan(history, planned, grid)
        if plan:
            found["plan"] = _plain(grid, np.array([*plan.values()]), [*plan], places, packing)
    for key, series in (
        ("plan", history.mix),  # that follows the losses, in place of the one before
        ("weights", history.weights),
        ("experts", history.experts),
    ):
        if series.names:
            grid = series.grid(BUCKETS)
            found[key] = _plain(grid, grid.mean, grid.names, places, packing)
    if history.host.names:
        host = history.host.grid(BUCKETS)
        found["host"] = _packed(host, {name: at for at, name in enumerate(host.names)}, packing)
        found["host"]["names"] = host.names
    return found


def _packed(grid: Grid, places: Mapping[str, int], packing: Packing) -> dict[str, Any]:
    """With the extremes of every bucket, where they are not its mean."""
    found = _plain(grid, grid.mean, grid.names, places, packing)
    same = np.isnan(grid.low) | (grid.low == grid.high)
    if not same.all():
        found["low"], found["high"] = packing.add(grid.low), packing.add(grid.high)
    rows, buckets = np.nonzero(grid.broken)
    found["broken"] = [[int(row), int(at)] for row, at in zip(rows, buckets, strict=True)]
    return found


def _plain(
    grid: Grid, rows: Floats, names: Sequence[str], places: Mapping[str, int], packing: Packing
) -> dict[str, Any]:
    at = dict(zip(AXES, (grid.tokens.tolist(), grid.iteration.tolist()), strict=True))
    return {"x": at, "of": [places[name] for name in names], "mean": packing.add(rows)}


def _shares(grid: Grid) -> Floats:
    """``[curves, buckets]``: what each domain has of the samples of a bucket."""
    total = grid.total.sum(axis=0)
    shares: Floats = np.divide(
        grid.total, total, out=np.full_like(grid.total, np.nan), where=total > 0
    )
    return shares


def _plan(history: History, planned: Planned, grid: Grid) -> dict[str, Floats]:
    """Of each domain, ``[buckets]``: its planned share; empty where none is known."""
    consumed = _consumed(history.host, grid)
    if consumed is None:
        return {}
    edges = [0, *consumed]
    by_bucket = [planned.shares(first, stop) for first, stop in pairwise(edges)]
    names = {name: None for shares in by_bucket for name in shares if name in history.domains}
    return {
        name: np.array([shares.get(name, 0.0) if shares else np.nan for shares in by_bucket])
        for name in names
    }


def _consumed(host: Series, grid: Grid) -> list[int] | None:
    """Samples consumed at the end of every bucket."""
    if "consumed_samples" not in host:
        return None
    own = host.grid(BUCKETS)
    samples = own.high[own.names.index("consumed_samples")]
    if len(samples) != len(grid.iteration) or not np.isfinite(samples).all():
        return None
    return [int(one) for one in samples]


def _events(run: Run) -> list[dict[str, Any]]:
    """Once each: a run that is killed early resumes at the same place again."""
    events = {mark.event: mark.tokens for mark in run.history.marks}
    return [
        {
            "kind": "resume" if event.name == "resume" else "event",
            "text": event.name + (f": {event.detail}" if event.detail else ""),
            "x": {"tokens": tokens, "iterations": event.iteration},
        }
        for event, tokens in events.items()
    ]


def _alarms(
    history: History, findings: Sequence[Finding], places: Mapping[str, int]
) -> list[dict[str, Any]]:
    tokens = _tokens_at(history, [one.iteration for one in findings])
    return [
        {
            "kind": one.severity,
            "text": one.message,
            "domain": places.get(one.domain) if one.domain is not None else None,
            "x": {"tokens": at, "iterations": one.iteration},
        }
        for one, at in zip(findings, tokens, strict=True)
    ]


def _tokens_at(history: History, iterations: Sequence[int]) -> list[float]:
    """Training tokens up to iterations, between the windows that were logged."""
    if not history.counts.names:
        return [0.0] * len(iterations)
    grid = history.counts.grid(BUCKETS)
    at = np.interp(iterations, [0.0, *grid.iteration], [0.0, *grid.tokens])
    return [float(one) for one in at]
