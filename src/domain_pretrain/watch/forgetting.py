"""``forgetting``: a domain that the model should keep, and whose validation loss rises."""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import NonNegative, Options, check_domains
from domain_pretrain.rules.state import State
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column, onset

IN_A_ROW = 2  # evaluations


class ForgettingOptions(Options):
    """Options of ``forgetting``; ``domains``: to keep; without any, those that are pinned."""

    domains: list[str] = Field(default_factory=list)
    part: NonNegative = 0.02
    errors: NonNegative = 3.0

    def bind(self, names: tuple[str, ...], where: str) -> ForgettingOptions:
        """Refuse a domain that there is not."""
        check_domains(f"{where}.domains", dict.fromkeys(self.domains), names, complete=False)
        return self


@register("forgetting", ForgettingOptions)
def forgetting(
    seen: Reading, state: State, options: ForgettingOptions
) -> tuple[list[Finding], State]:
    """One finding where a loss is above the run's first evaluation, twice in a row."""
    kept = set(options.domains) or seen.known.pinned
    if seen.split != "valid" or not kept:
        return [], state
    losses = seen.losses
    nothing, zeros = np.full(len(seen.rows), -1.0), np.zeros(len(seen.rows))
    first, samples = (column(state, key, nothing) for key in ("first", "samples"))
    above, active = (column(state, key, zeros) for key in ("above", "active"))
    found = []
    for name, totals in seen.totals.items():
        if name not in kept or name not in losses:
            continue
        row, loss = seen.rows[name], losses[name]
        if first[row] < 0:
            first[row], samples[row] = loss, totals.samples
            continue
        if name not in seen.noise:  # a rise may be chance
            continue
        # Of the difference, were the two evaluations on samples of their own.
        error = seen.noise[name] * math.sqrt(1 / max(samples[row], 1) + 1 / max(totals.samples, 1))
        limit = first[row] + max(options.errors * error, options.part * first[row])
        above[row] = above[row] + 1 if loss > limit else 0.0
        if onset(above[row] >= IN_A_ROW, above[row] == 0, active, row):
            found.append(_finding(seen, name, loss, first[row], error))
    state = {"first": first, "samples": samples, "above": above, "active": active}
    return found, state


def _finding(seen: Reading, name: str, loss: float, first: float, error: float) -> Finding:
    return Finding(
        rule="forgetting",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"{name} is being forgotten: its validation loss is {loss:.3f}, at the first "
            f"evaluation it was {first:.3f}"
        ),
        cause="the other domains",
        evidence={"loss": loss, "first": float(first), "rise": loss - first, "error": error},
        advice="More of it in the mix (replay), a lower learning rate, or fewer tokens in all.",
    )
