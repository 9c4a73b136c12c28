"""``all_moved``: the losses of nearly all domains jump at once, which no domain's data does."""

from __future__ import annotations

from domain_pretrain.records.record import Finding
from domain_pretrain.rules.options import Fraction, NonNegative, Options
from domain_pretrain.rules.state import State
from domain_pretrain.watch import cause
from domain_pretrain.watch.alarm import Reading, register


class AllMovedOptions(Options):
    """Options of ``all_moved``: the median domain's jump has to exceed both."""

    nats: NonNegative = 0.1
    part: Fraction = 0.05


@register("all_moved", AllMovedOptions)
def all_moved(seen: Reading, state: State, options: AllMovedOptions) -> tuple[list[Finding], State]:
    """One finding for all of them, until the losses are back on their way."""
    if not seen.scores:
        return [], state
    active = bool(state.get("active", 0))
    moved = cause.moved(seen.scores)
    change = cause.jump_of_all(seen.scores, options.nats, options.part)
    if active or change is None:
        return [], {"active": int(active and bool(moved))}
    where = "up" if change > 0 else "down"
    finding = Finding(
        rule="all_moved",
        domain=None,
        iteration=seen.iteration,
        severity="error" if change > 0 else "warning",
        message=(
            f"the losses of {len(moved)} of {len(seen.scores)} domains jump at once, {where} by "
            f"{abs(change):.3f} nats (median)"
        ),
        cause=cause.OPTIMIZER,
        evidence={
            **seen.where(),
            "direction": where,
            "moved": len(moved),
            "domains": len(seen.scores),
            "change": change,
            **({} if seen.grad_z is None else {"grad_z": seen.grad_z}),
            **seen.host,
        },
        advice=cause.ADVICE[cause.OPTIMIZER],
    )
    return [finding], {"active": 1}
