"""``too_low``: a domain that the model predicts too well: it has seen it before, or it repeats."""

from __future__ import annotations

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Fraction, Options, Steps
from domain_pretrain.rules.state import State
from domain_pretrain.watch import cause
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column, stays


class TooLowOptions(Options):
    """Options of ``too_low``; ``early``: steps up to which training itself cannot be why."""

    ratio: Fraction = 0.15
    early: Steps = 200


@register("too_low", TooLowOptions)
def too_low(seen: Reading, state: State, options: TooLowOptions) -> tuple[list[Finding], State]:
    """One finding where a loss stays below a small part of the entropy of the token ids."""
    if seen.split != "train" or not seen.known.entropy:
        return [], state
    zeros = np.zeros(len(seen.rows))
    low, active = (column(state, key, zeros) for key in ("low", "active"))
    found = []
    for name, loss in seen.losses.items():
        entropy = seen.known.entropy.get(name)
        if not entropy:
            continue
        row = seen.rows[name]
        if stays(loss < options.ratio * entropy, low, active, row):
            found.append(_finding(seen, name, loss, entropy, early=seen.iteration <= options.early))
    return found, {"low": low, "active": active}


def _finding(seen: Reading, name: str, loss: float, entropy: float, *, early: bool) -> Finding:
    why = "the model has seen it before" if early else "it repeats, or is learnt by heart"
    return Finding(
        rule="too_low",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"loss of {name} is only {loss:.3f}, {loss / entropy:.0%} of the entropy of its token "
            f"ids ({entropy:.3f}): {why}"
        ),
        cause=cause.DATA,
        evidence={
            **seen.where(),
            "loss": loss,
            "entropy": entropy,
            "ratio": loss / entropy,
            "direction": "down",
            "early": early,
        },
        advice=(
            "Is it in what the starting checkpoint was trained on? Leave it out, or give it less "
            "weight."
            if early
            else "Fewer epochs or less weight; look for templates and copies among its documents."
        ),
    )
