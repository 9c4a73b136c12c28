"""A plan in the words of a person, and what it takes of every prefix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from domain_pretrain.data.mix.apportion import constant, shares_of
from domain_pretrain.data.mix.locate import Locator
from domain_pretrain.data.mix.plan import Plan
from domain_pretrain.data.prefixes import normalise

MOST_TOLD = 8  # documents


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
    for omission in plan.omissions[-1:]:
        for prefix, numbers in zip(plan.prefixes, omission.documents, strict=True):
            if numbers:
                told = ", ".join(f"{number:,}" for number in numbers[:MOST_TOLD])
                more = f" and {len(numbers) - MOST_TOLD} more" if numbers[MOST_TOLD:] else ""
                yield "left out", f"samples with a token of document {told}{more} of {prefix}"


def tell_begun(plan: Plan, domain_of: Mapping[str, str], before: int, after: int) -> Iterator[str]:
    """The stages, but for the first, that a run has come to: it reads on in them.

    Args:
        plan: of the stream.
        domain_of: data prefix, normalised → name of its domain.
        before, after: samples that it had consumed, and has now.
    """
    starts = plan.starts()
    stops = [*starts[1:], plan.passed(plan.samples)]
    first, last = plan.position(before), plan.position(after)
    for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        if first < start <= last and start < stop and plan.reads(start, stop):
            where, what = list(describe(plan, domain_of))[number]
            yield f"{where} of mix.schedule: {what}"


def warn_of_idle(plan: Plan) -> Iterator[str]:
    """Of cuts that change nothing: a position may have been mistyped."""
    for first, stop in plan.idle_cuts:
        yield (
            f"mix.skip [{first}, {stop}] has no effect: the run ends at position "
            f"{plan.passed(plan.samples):,} of the stream"
        )


def tell_left_out(locator: Locator) -> Iterator[str]:
    """How many samples of each prefix the documents cost that are left out."""
    for omission in locator.plan.omissions[-1:]:
        told = (locator.plan.prefixes, omission.documents, omission.since, locator.left_out())
        for (prefix, documents, since, gone), length in zip(
            zip(*told, strict=True), locator.lengths, strict=True
        ):
            if documents:
                yield (
                    f"mix.skip: {gone:,} of {length:,} samples of {prefix} hold a token of "
                    f"{len(documents):,} document{'s' * (len(documents) != 1)}, and are left out "
                    f"after {since:,} samples of it"
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
