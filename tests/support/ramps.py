"""Batches that grow while training, and the weights that reweighting should have made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from packaging.version import Version
from support.corpora import DOMAINS
from support.launch import Run

from domain_pretrain.strategies.ema import HORIZON_STEPS

SEQUENCE = 32
RULE = {
    "strategy": "linupper",
    "warmup_steps": 0,
    "uniform_part": 0,
    "clip": [0, 1000],
}


def ramped(words: Sequence[str | Path], version: Version) -> list[str | Path]:
    """A run's words, with batches of 4 and later of 8 samples, as this Megatron spells it."""
    kept = list(words)
    for flag in ("--global-batch-size", "--train-iters", "--lr-warmup-iters"):
        while flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    if version.release < (0, 18):
        ramp = ["--rampup-batch-size", "4", "4", "8", "--global-batch-size", "8"]
    else:
        ramp = ["--step-batch-size-schedule", f"0:4 {8 * SEQUENCE}:8"]
    return [*kept, *ramp, "--train-samples", "32"]


def expected_weights(run: Run) -> list[dict[str, float]]:
    """For each logged step, every domain's multiplier, from the sums of the steps before it.

    Plain Python, by docs/reweighting.md; every step must have been logged.
    """
    horizon_of = HORIZON_STEPS * SEQUENCE / len(DOMAINS)  # a sample's part of the horizon
    sums, tokens, share = {}, {}, dict.fromkeys(DOMAINS, 0.0)
    consumed, found = 0, []
    for line in run.metrics():
        found.append(_linupper({name: sums[name] / tokens[name] for name in sums}, share))
        horizon = horizon_of * (line["consumed_samples"] - consumed)
        consumed = line["consumed_samples"]
        total = sum(domain["tokens"] for domain in line["domains"].values())
        common = math.exp(-total / (horizon * len(DOMAINS)))
        share = {name: value * common for name, value in share.items()}
        for name, domain in line["domains"].items():
            decay = math.exp(-domain["tokens"] / horizon)
            sums[name] = sums.get(name, 0.0) * decay + domain["loss_sum"]
            tokens[name] = tokens.get(name, 0.0) * decay + domain["tokens"]
            share[name] += domain["tokens"]
    return found


def _linupper(losses: dict[str, float], share: dict[str, float]) -> dict[str, float]:
    if len(losses) < 2:
        return dict.fromkeys(DOMAINS, 1.0)
    low, high = min(losses.values()), max(losses.values())
    scores = {
        name: math.exp(min((2 * loss - high - low) / (high - low) + 1, 1))
        for name, loss in losses.items()
    }
    scale = sum(share[name] for name in scores) / sum(share[n] * s for n, s in scores.items())
    return {name: scores[name] * scale if name in scores else 1.0 for name in DOMAINS}


def assert_ramped(run: Run) -> None:
    """The batches grew, and the multipliers in force are those of the formulas."""
    lines = run.metrics()
    consumed = [line["consumed_samples"] for line in lines]
    batches = {after - before for before, after in pairwise([0, *consumed])}
    assert batches == {4, 8}
    moved = 0.0
    for line, expected in zip(lines, expected_weights(run), strict=True):
        for name, domain in line["domains"].items():
            assert domain["weight"] == pytest.approx(expected[name], rel=1e-6)
            moved = max(moved, abs(domain["weight"] - 1))
    assert moved > 0.1
