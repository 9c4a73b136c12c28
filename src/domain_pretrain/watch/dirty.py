"""``dirty``: a domain that cannot be learnt, or that has nothing in it.

The yardstick is the entropy of the domain's own token ids: the loss of a model that knows how
frequent each is and nothing of their order. Text lies far below it after little training; what
stays at it has no order to learn (bytes of archives, broken encodings, shuffled words). An entropy
near zero is one token over and over: newlines, padding.
"""

from __future__ import annotations

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import NonNegative, Options, Positive, Steps
from domain_pretrain.rules.state import State
from domain_pretrain.watch import cause
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column, onset, stays


class DirtyOptions(Options):
    """Options of ``dirty``; ``tokens``: of all domains, a hundredth of it from this one."""

    ratio: Positive = 0.9
    steps: Steps = 200
    tokens: NonNegative = 1e6
    entropy: NonNegative = 0.5


@register("dirty", DirtyOptions)
def dirty(seen: Reading, state: State, options: DirtyOptions) -> tuple[list[Finding], State]:
    """At the first window where there is hardly any entropy; later where the loss stays at it."""
    if seen.split != "train" or not seen.known.entropy:
        return [], state
    losses, zeros = seen.losses, np.zeros(len(seen.rows))
    keys = ("tokens", "high", "active", "empty")
    tokens, high, active, empty = (column(state, key, zeros) for key in keys)
    found, total = [], float(state.get("total", 0.0)) + seen.stats.total.tokens
    for name, totals in seen.totals.items():
        entropy = seen.known.entropy.get(name)
        if entropy is None or name not in losses:
            continue
        row = seen.rows[name]
        tokens[row] += totals.tokens
        if onset(entropy < options.entropy, False, empty, row):
            found.append(_empty(seen, name, entropy))
        if empty[row]:
            continue
        ratio = losses[name] / entropy
        trained = min(total, 100 * tokens[row]) >= options.tokens
        trained = trained and seen.iteration >= options.steps
        if stays(ratio > options.ratio, high, active, row, counts=trained):
            found.append(_unlearnt(seen, name, losses[name], entropy, tokens[row]))
    rows = {"tokens": tokens, "high": high, "active": active, "empty": empty}
    return found, {"total": total, **rows}


def _empty(seen: Reading, name: str, entropy: float) -> Finding:
    return Finding(
        rule="dirty",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"{name} is nearly one token over and over: its token ids have an entropy of "
            f"{entropy:.2f} nats"
        ),
        cause=cause.DATA,
        evidence={**seen.where(), "entropy": entropy, "direction": "down"},
        advice=(
            "Newlines, blanks or padding: read some documents, mend how the text was extracted, "
            "and prepare the data again."
        ),
    )


def _unlearnt(seen: Reading, name: str, loss: float, entropy: float, tokens: float) -> Finding:
    return Finding(
        rule="dirty",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"{name} is not learnt: after {tokens:,.0f} tokens of it, its loss is {loss:.3f}, "
            f"{loss / entropy:.0%} of the entropy of its token ids ({entropy:.3f})"
        ),
        cause=cause.DATA,
        evidence={
            **seen.where(),
            "loss": loss,
            "entropy": entropy,
            "ratio": loss / entropy,
            "tokens": tokens,
        },
        advice=(
            "Read some documents: broken encoding, binary content, shuffled words? Clean the "
            "domain or take it out; it costs tokens and teaches nothing."
        ),
    )
