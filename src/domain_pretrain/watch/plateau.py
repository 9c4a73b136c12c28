"""``plateau``: a domain whose loss no longer falls, while the learning rate is still high."""

from __future__ import annotations

import math

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Fraction, Options, Positive, Steps
from domain_pretrain.rules.state import State
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import Array, column, onset

BINS = 40  # of the run so far, equally long; halved whenever they are full
PART = 5  # the last fifth of them


class PlateauOptions(Options):
    """Options of ``plateau``.

    ``power``: a fall of such a part of the loss has to be visible through the noise, else nothing
    is said; ``rate``: of the highest learning rate so far.
    """

    steps: Steps = 1000
    power: Positive = 0.005
    rate: Fraction = 0.1


@register("plateau", PlateauOptions)
def plateau(seen: Reading, state: State, options: PlateauOptions) -> tuple[list[Finding], State]:
    """Compares the two halves of the run's last fifth, by their standard error."""
    if seen.split != "train":
        return [], state
    empty, zeros = np.zeros((len(seen.rows), BINS)), np.zeros(len(seen.rows))
    loss, samples = (column(state, key, empty) for key in ("loss", "samples"))
    active = column(state, "active", zeros)
    used, width, filled = (int(state.get(key, start)) for key, start in _START)
    rate = seen.host.get("learning_rate", 1.0)
    peak = max(float(state.get("peak", 0.0)), rate)
    counts = {name: totals.samples for name, totals in seen.totals.items()}
    for name, value in seen.losses.items():
        row, weight = seen.rows[name], counts[name]
        loss[row, used] += value * weight
        samples[row, used] += weight
    filled += 1
    found: list[Finding] = []
    if filled == width:
        used, filled = used + 1, 0
        if seen.iteration >= options.steps and rate > options.rate * peak and used >= 2 * PART:
            found = _look(seen, loss[:, :used], samples[:, :used], active, options)
        if used == BINS:
            used, width = BINS // 2, width * 2
            loss, samples = _merged(loss), _merged(samples)
    return found, {
        "loss": loss,
        "samples": samples,
        "active": active,
        "peak": peak,
        "used": used,
        "width": width,
        "filled": filled,
    }


_START = (("used", 0), ("width", 1), ("filled", 0))


def _merged(bins: Array) -> Array:
    """Pairs of bins as one each, the rest empty."""
    pairs: Array = bins.reshape(len(bins), BINS // 2, 2).sum(axis=2)
    return np.concatenate([pairs, np.zeros_like(pairs)], axis=1)


def _look(
    seen: Reading, loss: Array, samples: Array, active: Array, options: PlateauOptions
) -> list[Finding]:
    last = max(2, loss.shape[1] // PART // 2 * 2)
    halves = [slice(-last, -last // 2), slice(-last // 2, None)]
    found = []
    for name, noise in seen.noise.items():
        row = seen.rows[name]
        counts = [float(samples[row, half].sum()) for half in halves]
        if not all(counts):
            continue
        sums = [float(loss[row, half].sum()) for half in halves]
        before, after = (one / count for one, count in zip(sums, counts, strict=True))
        error = noise * math.sqrt(sum(1 / count for count in counts))
        visible = error < options.power * after
        fall = before - after
        if onset(visible and fall < error, fall > 2 * error, active, row):
            found.append(_finding(seen, name, after, fall, error))
    return found


def _finding(seen: Reading, name: str, loss: float, fall: float, error: float) -> Finding:
    entropy = seen.known.entropy.get(name)
    high = entropy is not None and loss > 0.7 * entropy
    return Finding(
        rule="plateau",
        domain=name,
        iteration=seen.iteration,
        severity="info",
        message=(
            f"{name} no longer improves: over the last tenth of the run its loss fell by "
            f"{fall:.4f} to {loss:.3f} (standard error {error:.4f})"
        ),
        cause="dirty or too hard" if high else "",
        evidence={
            **seen.where(),
            "loss": loss,
            "fall": fall,
            "error": error,
            **({} if entropy is None else {"entropy": entropy}),
            **seen.host,
        },
        advice=(
            "Read some documents: much of it may be noise."
            if high
            else "It has learnt what it can at this learning rate: give its tokens to other "
            "domains, or let the rate decay."
        ),
    )
