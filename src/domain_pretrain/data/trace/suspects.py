"""The samples that a replay asks about: those of a jump, and as many from before it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from domain_pretrain.data.trace.trace import Sample, Trace
from domain_pretrain.errors import ConfigError


def suspects_and_control(
    trace: Trace, iterations: tuple[int, int], onset: int, domain: str | None, most: int
) -> tuple[list[Sample], list[Sample]]:
    """Both of the same domain, and as many, as far as there are so many.

    Args:
        trace: of the run.
        iterations: of the suspects, the second is without.
        onset: the last iteration that is to be trusted; the control is of it and those before.
        domain: whose samples; None: of all.
        most: suspects; of more, evenly spaced ones.

    Raises:
        ConfigError: there are no such iterations, or no sample of the domain in them.
    """

    def read(first: int, stop: int) -> list[Sample]:
        samples = trace.iterations(first, stop)
        return [one for one in samples if domain is None or one.is_of(domain)]

    suspects = read(*iterations)
    suspects = suspects[:: -(-len(suspects) // most) or 1]
    control: list[Sample] = []
    at = onset
    while at > 0 and len(control) < len(suspects):
        try:
            control += read(at, at + 1)
        except ConfigError:  # the journal begins later
            break
        at -= 1
    whose = "" if domain is None else f" of {domain}"
    if not suspects:
        raise ConfigError(f"iterations {iterations[0]}:{iterations[1]} read no sample{whose}")
    if not control:
        raise ConfigError(f"no sample{whose} was read up to iteration {onset}: nothing to compare")
    return suspects, control[: len(suspects)]


def rows_of(samples: Sequence[Sample]) -> dict[str, list[int]]:
    """The token ids of each, the last label with them, by its position in the stream."""
    return {
        str(one.position): np.concatenate(
            [one.part.data.tokens(one.prefix, span) for span in one.documents]
        ).tolist()
        for one in samples
    }
