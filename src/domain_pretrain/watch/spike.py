"""``spike``: a domain's loss jumps, up or down; a second finding where it stays there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Fraction, NonNegative, Options, Positive
from domain_pretrain.rules.state import State
from domain_pretrain.watch import cause
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column
from domain_pretrain.watch.scores import LINE, Score

CALM = 3.0  # standard deviations: a window that can be trusted
AFTER, STAYS = 5, 3  # of the next 5 windows, 3 that are off as well


class SpikeOptions(Options):
    """Options of ``spike``: all of them have to be exceeded."""

    deviations: Positive = 6.0
    nats: NonNegative = 0.1
    part: Fraction = 0.05


@register("spike", SpikeOptions)
def spike(seen: Reading, state: State, options: SpikeOptions) -> tuple[list[Finding], State]:
    """One finding at the jump, one more where it stays; none where all domains jump by as much.

    Those are for ``all_moved`` to tell, and what follows while they find their way back is no news.
    ``onset`` in the evidence is the last logged iteration before it at which the domain's loss was
    where it was heading.
    """
    if seen.split != "train":
        return [], state
    zeros = np.zeros(len(seen.rows))
    # The last calm iteration; the onset of what has been told, or -1; windows since, and of those
    # the ones that were off.
    calm, since, off = (column(state, key, zeros) for key in ("calm", "since", "off"))
    told = column(state, "told", zeros - 1)
    why = cause.likely(seen.scores, seen.grad_z, options.nats, options.part)
    shaken = LINE if why == cause.OPTIMIZER else max(0, int(state.get("shaken", 0)) - 1)
    found = []
    for name in seen.losses.keys() - seen.scores.keys():
        calm[seen.rows[name]] = seen.iteration  # nothing is known to the contrary
    for name, score in seen.scores.items():
        row = seen.rows[name]
        if told[row] >= 0:
            since[row] += 1
            off[row] += abs(score.z) > cause.MOVED
            if off[row] == STAYS and since[row] <= AFTER:
                found.append(_sustained(_finding(seen, name, score, why, int(told[row]))))
                off[row] = AFTER + 1  # once
            elif since[row] >= AFTER and abs(score.z) <= CALM:
                told[row] = -1
        elif _jumps(score, options) and not shaken:
            found.append(_finding(seen, name, score, why, int(calm[row])))
            told[row], since[row], off[row] = calm[row], 0, 0
        if abs(score.z) <= CALM:
            calm[row] = seen.iteration
    return found, {"calm": calm, "told": told, "since": since, "off": off, "shaken": shaken}


def _jumps(score: Score, options: SpikeOptions) -> bool:
    matters = cause.beyond(score.change, score.expected, options.nats, options.part)
    return abs(score.z) > options.deviations and matters


def _finding(seen: Reading, name: str, score: Score, why: str, onset: int) -> Finding:
    up = score.change > 0
    advice = cause.ADVICE[why]
    if not up and why in (cause.DATA, cause.DATA_MOVED_OPTIMIZER):
        advice = "Read the documents below: text that repeats itself, or that was read before?"
    return Finding(
        rule="spike",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"loss of {name} jumps {'up' if up else 'down'} to {score.loss:.3f} (expected "
            f"{score.expected:.3f}, {abs(score.z):.0f} standard deviations off)"
        ),
        cause=why,
        evidence={
            **seen.where(),
            "onset": onset,
            "direction": "up" if up else "down",
            "loss": score.loss,
            "expected": score.expected,
            "z": score.z,
            "moved": len(cause.moved(seen.scores)),
            "domains": len(seen.scores),
            **({} if seen.grad_z is None else {"grad_z": seen.grad_z}),
            **seen.host,
        },
        advice=advice,
    )


def _sustained(finding: Finding) -> Finding:
    return replace(
        finding,
        severity="error",
        message=f"{finding.message}: it stays there",
        evidence={**finding.evidence, "sustained": True},
    )
