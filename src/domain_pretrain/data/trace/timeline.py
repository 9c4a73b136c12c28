"""Iterations and the samples that they take: by the starts of a run, and by what it has logged."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from domain_pretrain.errors import ConfigError
from domain_pretrain.records.journal import Start


class Step(NamedTuple):
    """One iteration: its samples are ``[consumed, consumed + samples)``, on all ranks together."""

    iteration: int
    consumed: int
    samples: int


class Mark(NamedTuple):
    """After ``iteration``, ``consumed`` samples are behind the run."""

    iteration: int
    consumed: int


@dataclass(frozen=True)
class Stretch:
    """The iterations that one start of a run has trained, or will.

    Attributes:
        start: which one.
        marks: what is known, ascending; the first is where it starts.
        last: iteration; None: the run's own end.
        samples: of the whole run.
        batch_at: samples of the step that begins after so many consumed.
    """

    start: Start
    marks: Sequence[Mark]
    last: int | None
    samples: int
    batch_at: Callable[[int], int]

    def steps(self, *, iteration: int = 0, consumed: int = 0) -> Iterator[Step]:
        """The steps from an iteration on, and from that on which takes a sample.

        Raises:
            ConfigError: what was logged is not what the batch sizes give.
        """
        if self.last is not None and iteration > self.last:
            return
        after = bisect_right(self.marks, iteration - 1, key=lambda mark: mark.iteration)
        behind = bisect_right(self.marks, consumed, key=lambda mark: mark.consumed)
        at = max(0, after - 1, behind - 1)
        known = dict(self.marks[at:])
        done, taken = self.marks[at]
        while self.last is None or done < self.last:
            size = self.batch_at(taken)
            if taken + size > self.samples:
                return
            done += 1
            if done >= iteration and taken + size > consumed:
                yield Step(done, taken, size)
            taken += size
            if known.get(done, taken) != taken:
                raise ConfigError(
                    f"after iteration {done:,} the metrics file counts {known[done]:,} samples, "
                    f"the batch sizes in the journal give {taken:,}: the two are not of one run"
                )

    @property
    def end(self) -> Mark:
        """Where it ends: walks all of its steps that no line has told of."""
        done, taken = self.marks[-1]
        for step in self.steps(iteration=done + 1):
            done, taken = step.iteration, step.consumed + step.samples
        return Mark(done, taken)


def stretches(
    starts: Sequence[Start],
    logged: Iterable[Mark],
    batches: Callable[[Start], Callable[[int], int]],
) -> list[Stretch]:
    """The run in parts, ascending.

    Args:
        starts: that still hold; see :func:`.read_starts`.
        logged: of the metrics file, ascending.
        batches: gives a start's :attr:`Stretch.batch_at`.

    Raises:
        ConfigError: a start does not say how many samples its run has.
    """
    marks = sorted(set(logged))
    found = []
    for start, after in pairwise([*starts, None]):
        assert start is not None
        samples = start.order.get("samples")
        if not isinstance(samples, int):
            raise ConfigError(
                f"the start at iteration {start.iteration:,} does not say how many samples the run "
                "takes: it was given neither --train-iters nor --train-samples"
            )
        last = None if after is None else after.iteration
        own = [
            mark
            for mark in marks
            if start.iteration < mark.iteration and (last is None or mark.iteration <= last)
        ]
        first = Mark(start.iteration, start.consumed_samples)
        found.append(Stretch(start, [first, *own], last, samples, batches(start)))
    return found
