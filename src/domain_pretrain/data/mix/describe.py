"""A plan in the words of a person, and what it takes of every prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from domain_pretrain.data.mix.apportion import constant, shares_of
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import normalise


def describe(plan: Plan, domain_of: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Rows of a table: each stage and its shares by domain; the cuts.

    Args:
        plan: of the stream.
        domain_of: data prefix, normalised → name of its domain.
    """
    starts = plan.starts()
    for number, (stage, start) in enumerate(zip(plan.stages, starts, strict=True), start=1):
        stop = plan.samples if stage.samples is None else start + stage.samples
        shares: dict[str, float] = {}
        for prefix, share in zip(
            plan.prefixes, () if stage.weights is None else shares_of(stage.weights), strict=False
        ):
            name = domain_of[normalise(prefix)]
            shares[name] = shares.get(name, 0.0) + float(share)
        mixed = ", ".join(f"{name} {share:.2%}" for name, share in shares.items() if share)
        how = "" if stage.shape == "constant" else f", {stage.shape}"
        where, what = f"stage {number}", f"samples {start:,} to {stop:,}"
        if plan.block is not None:
            where, what = "dynamic", f"decided for {plan.block:,} samples at a time, at first"
        yield where, f"{what}{how}: {mixed or 'by size'}"
    if plan.cuts:
        cuts = ", ".join(f"{first:,} to {stop:,}" for first, stop in plan.cuts)
        yield "skipped", f"positions {cuts} of the stream"


def warn_of_idle(plan: Plan) -> Iterator[str]:
    """Of cuts that change nothing: a position may have been mistyped."""
    for first, stop in plan.idle_cuts:
        yield (
            f"mix.skip [{first}, {stop}] has no effect: the run ends at position "
            f"{plan.passed(plan.samples):,} of the stream"
        )


def samples_of(plan: Plan, lengths: Sequence[int]) -> list[int]:
    """Samples that the run reads of every prefix.

    Exact for stages; of one blend all along, within a few, for its own order is laid out one by
    one. Where the losses decide, as if they changed nothing.

    Args:
        plan: of the stream.
        lengths: samples that one epoch of every prefix has.
    """
    if len(plan.stages) > 1:
        return Locator(plan, lengths, 0).counts()
    (stage,) = plan.stages
    shares = shares_of(lengths if stage.weights is None else stage.weights)
    return [int(count) for count in constant(shares, plan.samples, whole=True)[1][-1]]
