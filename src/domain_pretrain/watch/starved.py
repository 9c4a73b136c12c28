"""``starved``: a domain that gives far fewer samples than the plan has of it."""

from __future__ import annotations

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Fraction, Options, Positive
from domain_pretrain.rules.state import State
from domain_pretrain.watch import cause
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column, onset


class StarvedOptions(Options):
    """Options of ``starved``; ``samples``: that a domain should have given, to judge it by."""

    share: Fraction = 0.5
    samples: Positive = 50.0


@register("starved", StarvedOptions)
def starved(seen: Reading, state: State, options: StarvedOptions) -> tuple[list[Finding], State]:
    """A sample counts that has a token with a loss; compared whenever enough were due."""
    if seen.split != "train" or not seen.shares:
        return [], state
    zeros = np.zeros(len(seen.rows))
    due, came, active = (column(state, key, zeros) for key in ("due", "came", "active"))
    # Where the comparison began: first iteration, and samples before it; -1: nowhere yet.
    begun = column(state, "begun", np.full((len(zeros), 2), -1.0))
    where = seen.where()
    samples = {name: totals.samples for name, totals in seen.totals.items()}
    found = []
    for name, share in seen.shares.items():
        row = seen.rows[name]
        if begun[row, 0] < 0 and where:
            begun[row] = where["iterations"][0], where["samples"][0]
        due[row] += share * seen.trained
        came[row] += samples.get(name, 0)
        if due[row] < options.samples:
            continue
        few = came[row] < options.share * due[row]
        if onset(few, not few, active, row):
            found.append(_finding(seen, name, came[row], due[row], begun[row].astype(int).tolist()))
        due[row], came[row], begun[row] = 0.0, 0.0, -1.0
    return found, {"due": due, "came": came, "active": active, "begun": begun}


def _finding(seen: Reading, name: str, came: float, due: float, begun: list[int]) -> Finding:
    # All of the time: the domain may not be in the last window at all.
    where = {
        key: [first, last[1]]
        for first, (key, last) in zip(begun, seen.where().items(), strict=False)
    }
    return Finding(
        rule="starved",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"{name} is starved: {came:.0f} of its samples had a token to learn from, where the "
            f"plan has {due:.0f}"
        ),
        cause=cause.DATA,
        evidence={**where, "came": float(came), "due": float(due)},
        advice=(
            "Are its tokens masked out (--eod-mask-loss, --sft, padding), or does the script read "
            "other data than the plan?"
        ),
    )
