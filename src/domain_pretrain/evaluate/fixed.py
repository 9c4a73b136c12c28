"""Which samples a fixed validation set has, and which of them a rank reads when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence


def choose(lengths: Sequence[int], domains: Sequence[int], samples: int) -> list[tuple[int, int]]:
    """The first samples of every domain, taken from its data sets in proportion to their lengths.

    Args:
        lengths: samples of one pass over each data set.
        domains: domain index of each.
        samples: wanted of each domain; all that it has, where it has fewer.

    Returns:
        (data set, sample of it) of each, by domain, then by data set.
    """
    members: defaultdict[int, list[int]] = defaultdict(list)
    for number, domain in enumerate(domains):
        members[domain].append(number)
    rows = []
    for domain in sorted(members):
        own = members[domain]
        total = sum(lengths[number] for number in own)
        wanted, passed, taken = min(samples, total), 0, 0
        for number in own:
            passed += lengths[number]
            count = wanted * passed // total - taken if total else 0
            taken += count
            rows += [(number, sample) for sample in range(count)]
    return rows


def steps(rows: int, batch: int) -> int:
    """Steps of ``batch`` samples that ``rows`` samples take."""
    return -(-rows // batch)


def microbatches(
    rows: int, batch: int, micro: int, replica: int, replicas: int
) -> Iterator[list[int | None]]:
    """The samples that one data-parallel rank reads, by their place in the set, in the order of the
    host's own sampler; None pads the last step.

    Args:
        rows: how many the set has.
        batch: samples of a step, over all ranks.
        micro: samples of a microbatch.
        replica, replicas: this data-parallel rank, and how many there are.
    """
    for step in range(steps(rows, batch)):
        for first in range(step * batch, (step + 1) * batch, micro * replicas):
            start = first + replica * micro
            yield [row if row < rows else None for row in range(start, start + micro)]
