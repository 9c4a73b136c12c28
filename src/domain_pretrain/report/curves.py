"""Losses over training as curves: the metrics files of consecutive runs on one axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from domain_pretrain.records.reader import domain_names, read_metrics

XAxis = Literal["tokens", "iterations"]


@dataclass
class Curve:
    """Losses of one domain in one phase. NaN where not finite; an absent domain has no point."""

    phase: int
    x: list[float]
    loss: list[float]


@dataclass
class Curves:
    """What there is to draw.

    Attributes:
        train, valid: by domain, in order of first appearance; a curve for each phase that has it.
        starts: (name, x) of every phase.
    """

    train: dict[str, list[Curve]]
    valid: dict[str, list[Curve]]
    starts: list[tuple[str, float]]


def read_curves(phases: Iterable[tuple[str, Path]], x: XAxis) -> Curves:
    """Read the metrics files of ``phases``, (name, path) each, one after the other.

    ``x`` counts training tokens of all domains together, or iterations, over all phases.
    """
    curves = Curves({}, {}, [])
    end = 0.0
    for phase, (name, path) in enumerate(phases):
        entries = read_metrics(path)
        start, tokens = end, 0.0
        curves.starts.append((name, start))
        here = {
            split: {domain: Curve(phase, [], []) for domain in domain_names(entries)}
            for split in ("train", "valid")
        }
        for entry in entries:
            if entry["split"] == "train":
                tokens += sum(values["tokens"] for values in entry["domains"].values())
                end = start + (tokens if x == "tokens" else entry["iteration"])
            for domain, values in entry["domains"].items():
                if entry["split"] in here:
                    curve = here[entry["split"]][domain]
                    curve.x.append(end)
                    curve.loss.append(math.nan if values["loss"] is None else values["loss"])
        for split, all_curves in (("train", curves.train), ("valid", curves.valid)):
            for domain, curve in here[split].items():
                if curve.x:
                    all_curves.setdefault(domain, []).append(curve)
    return curves


def moving_average(values: list[float], window: int) -> list[float]:
    """Centred mean of the finite values in ``window``; shorter at both ends; NaN where none is."""
    half = window // 2
    means = []
    for i in range(len(values)):
        # As many to the left as to the right, or the ends of a slope would be bent.
        reach = min(half, i, len(values) - 1 - i)
        near = [value for value in values[i - reach : i + reach + 1] if math.isfinite(value)]
        means.append(math.fsum(near) / len(near) if near else math.nan)
    return means
