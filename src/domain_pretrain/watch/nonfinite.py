"""``nonfinite``: a domain whose loss is NaN or infinite."""

from __future__ import annotations

import numpy as np

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Options
from domain_pretrain.rules.state import State
from domain_pretrain.watch import cause
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column, onset


@register("nonfinite")
def nonfinite(seen: Reading, state: State, options: Options) -> tuple[list[Finding], State]:
    """One finding for each domain with tokens whose loss is not finite, until it is again."""
    active = column(state, seen.split, np.zeros(len(seen.rows)))
    many = [name for name, totals in seen.totals.items() if totals.nonfinite]
    # The weights are the same for all: where they are NaN, every domain is.
    why = cause.OPTIMIZER if len(many) == len(seen.totals) > 1 else cause.DATA
    if len(seen.totals) == 1:
        why = cause.UNCLEAR
    found = []
    for name, totals in seen.totals.items():
        if not onset(totals.nonfinite > 0, not totals.nonfinite, active, seen.rows[name]):
            continue
        found.append(
            Finding(
                rule="nonfinite",
                domain=name,
                iteration=seen.iteration,
                severity="error",
                message=(
                    f"NaN or infinite loss ({seen.split}, iteration {seen.iteration}) "
                    f"in domain {name} ({totals.nonfinite:,} tokens)"
                ),
                cause=why,
                evidence={
                    **seen.where(),
                    "nonfinite_tokens": totals.nonfinite,
                    "nonfinite_domains": len(many),
                    "domains": len(seen.totals),
                },
                advice=_ADVICE[why],
            )
        )
    return found, {**state, seen.split: active}


_ADVICE = {
    cause.DATA: "Read the documents of that window, and look at their loss mask: the other domains "
    "are finite, so the weights are.",
    cause.OPTIMIZER: "Every domain is concerned, hence the weights: go back to a checkpoint before "
    "it, and look at the learning rate and the gradient norm.",
    cause.UNCLEAR: "Look at the learning rate, the gradient norm and the documents of that window.",
}
