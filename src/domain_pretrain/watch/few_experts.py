"""``few_experts``: a domain of which a mixture of experts gives nearly all to a few of them."""

from __future__ import annotations

import numpy as np

from domain_pretrain.records.record import Experts, Finding
from domain_pretrain.rules.options import Fraction, Options, Steps
from domain_pretrain.rules.state import State
from domain_pretrain.watch.alarm import Reading, register
from domain_pretrain.watch.memory import column, stays

CHOICES = 32  # for each expert of a layer: few tokens cannot reach many of them


class FewExpertsOptions(Options):
    """Options of ``few_experts``.

    ``part``: of the way from the fewest experts to all of them; ``steps``: routers that have hardly
    learnt anything give tokens that look alike to the same experts.
    """

    steps: Steps = 200
    part: Fraction = 0.2


@register("few_experts", FewExpertsOptions)
def few_experts(
    seen: Reading, state: State, options: FewExpertsOptions
) -> tuple[list[Finding], State]:
    """Compares how many experts of equal load a domain's tokens are as good as spread over.

    With k experts a token, they are k where all tokens go to the same ones.
    """
    experts = seen.experts
    if experts is None or seen.iteration <= options.steps:
        return [], state
    count, fewest = experts.load.shape[-1], experts.topk
    zeros = np.zeros(len(seen.rows))
    runs, active = (column(state, key, zeros) for key in ("runs", "active"))
    found = []
    for name, numbers in experts.domains.items():
        row = seen.rows[name]
        choices = experts.load[:, row].sum(axis=-1).min()
        if choices < CHOICES * count or count <= fewest:
            continue
        part = (numbers["used"] - fewest) / (count - fewest)
        if stays(part < options.part, runs, active, row):
            found.append(_finding(seen, experts, name, part))
    return found, {"runs": runs, "active": active}


def _finding(seen: Reading, experts: Experts, name: str, part: float) -> Finding:
    own = experts.load[:, seen.rows[name]]
    busiest = own.max(axis=-1) / own.sum(axis=-1)
    layer, count = int(busiest.argmax()), own.shape[-1]
    used, of_all = experts.domains[name]["used"], experts.overall["used"]
    return Finding(
        rule="few_experts",
        domain=name,
        iteration=seen.iteration,
        severity="warning",
        message=(
            f"{name} uses few experts: its tokens are spread as over {used:.1f} of {count} (those "
            f"of all domains: {of_all:.1f}); in layer {experts.layers[layer]}, expert "
            f"{int(own[layer].argmax())} gets {busiest[layer]:.0%} of them"
        ),
        cause="router",
        evidence={
            **seen.where(),
            "used": used,
            "used_by_all": of_all,
            "experts": count,
            "topk": experts.topk,
            "part": part,
            "layer": experts.layers[layer],
        },
        advice=(
            "Few experts then learn it, and the others nothing of it. Give the balance more weight "
            "(--moe-aux-loss-coeff), or the routers a loss of their own (adapt.experts.entropy_loss"
            "); if its documents are all alike, it is as it should be."
        ),
    )
