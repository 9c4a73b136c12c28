"""``nonfinite``: a domain whose loss is NaN or infinite."""

from __future__ import annotations

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Options
from domain_pretrain.rules.state import State
from domain_pretrain.watch.alarm import Reading, register


@register("nonfinite")
def nonfinite(seen: Reading, state: State, options: Options) -> tuple[list[Finding], State]:
    """One finding for each domain with tokens whose loss is not finite; nothing to remember."""
    found = [
        Finding(
            rule="nonfinite",
            domain=name,
            iteration=seen.iteration,
            severity="warning",
            message=(
                f"NaN or infinite loss ({seen.split}, iteration {seen.iteration}) "
                f"in domain {name} ({totals.nonfinite:,} tokens)"
            ),
            evidence={"nonfinite_tokens": totals.nonfinite},
        )
        for name, totals in seen.stats
        if totals.nonfinite
    ]
    return found, state
