"""``duplicate``: a domain whose documents are copies, or whose data comes round again."""

from __future__ import annotations

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Fraction, Options
from domain_pretrain.rules.state import State
from domain_pretrain.watch import cause
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column, onset

NEXT, LOW = 5, 3  # of so many windows, that are lower than they were heading


class DuplicateOptions(Options):
    """Options of ``duplicate``; ``share``: of exact copies among the documents."""

    share: Fraction = 0.1


@register("duplicate", DuplicateOptions)
def duplicate(
    seen: Reading, state: State, options: DuplicateOptions
) -> tuple[list[Finding], State]:
    """At the first window what the manifest tells; later, a loss that drops as an epoch ends."""
    if seen.split != "train":
        return [], state
    zeros, known = np.zeros(len(seen.rows)), seen.known
    keys = ("tokens", "copies", "drops", "active")
    tokens, copies, drops, active = (column(state, key, zeros) for key in keys)
    found = []
    for name, totals in seen.totals.items():
        row = seen.rows[name]
        tokens[row] += totals.tokens
        share = known.duplicates.get(name, 0) / max(known.documents.get(name, 0), 1)
        if onset(share > options.share, False, copies, row):
            found.append(_copies(seen, name, share))
        score = seen.scores.get(name)
        if score is None:
            continue
        # The last windows, one bit each, the newest lowest.
        falls = score.z < -cause.MOVED and score.change < -0.05 * abs(score.expected)
        drops[row] = (int(drops[row]) << 1 | falls) & ((1 << NEXT) - 1)
        epochs = tokens[row] / known.tokens[name] if known.tokens.get(name) else 0.0
        again = epochs > 1 or share > 0
        many = int(drops[row]).bit_count() >= LOW
        if onset(many and again, not drops[row], active, row):
            found.append(_again(seen, name, score.loss, score.expected, epochs))
    return found, {"tokens": tokens, "copies": copies, "drops": drops, "active": active}


def _copies(seen: Reading, name: str, share: float) -> Finding:
    copies, documents = seen.known.duplicates[name], seen.known.documents[name]
    return Finding(
        rule="duplicate",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"{copies:,} of {name}'s {documents:,} documents ({share:.0%}) are exact copies of "
            "others"
        ),
        cause=cause.DATA,
        evidence={
            **seen.where(),
            "copies": copies,
            "documents": documents,
            "share": share,
            "direction": "repeated",
        },
        advice="Remove the copies and prepare the data again; till then its loss tells little.",
    )


def _again(seen: Reading, name: str, loss: float, expected: float, epochs: float) -> Finding:
    return Finding(
        rule="duplicate",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"loss of {name} drops to {loss:.3f} and stays there (expected {expected:.3f}): what "
            "it reads has been read before"
            + (f" ({epochs:.1f} epochs so far)" if epochs > 1 else "")
        ),
        cause=cause.DATA,
        evidence={
            **seen.where(),
            "loss": loss,
            "expected": expected,
            "epochs": epochs,
            "direction": "repeated",
        },
        advice="Find more data for it, give it less weight, or remove the copies.",
    )
