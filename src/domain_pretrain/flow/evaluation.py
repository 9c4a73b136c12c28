"""The sums of an evaluation: only what the host finished counts.

An evaluation reads one set of data or several; a set takes a known number of steps; a step may be
attempted more than once. A ledger holds the present attempt; what is whole moves one up.
"""

from __future__ import annotations

from dataclasses import replace

from domain_pretrain.flow.conservation import check_conservation
from domain_pretrain.flow.forward import Forward
from domain_pretrain.records.samples import Samples
from domain_pretrain.stats import DomainStats


class Evaluation:
    """attempt → step → set → evaluation, on every rank.

    Args:
        names: of the domains.
        forward: counts microbatches; its ledger, of one attempt, has a row for each domain, or for
            each sample.
        samples: domain index of each sample, where it is those that are counted.
    """

    def __init__(
        self, names: tuple[str, ...], forward: Forward, samples: tuple[int, ...] | None = None
    ) -> None:
        self.forward = forward
        self._names, self._samples = names, samples
        self.attempt = attempt = forward.ledger
        self._set = attempt.empty()
        self._whole = attempt.empty()
        # Microbatches that there must have been, per data-parallel rank.
        self._of_attempt = self._of_set = self._of_whole = 0

    def open(self) -> None:
        """Start an evaluation."""
        self._whole.open()
        self._of_whole = 0
        self.open_set()

    def open_set(self) -> None:
        """Start a set of data; what one before it left unfinished is forgotten."""
        self._set.open()
        self._of_set = 0

    def open_attempt(self, microbatches: int) -> None:
        """Start an attempt at a step; an earlier one is forgotten.

        A CUDA graph that replays an attempt does so without this call, with as many microbatches
        as when it was captured.

        Args:
            microbatches: that it has, per data-parallel rank.
        """
        self.attempt.open()
        self._of_attempt = microbatches

    def close_step(self) -> None:
        """The host takes the last attempt as its result."""
        self._set.add(self.attempt)
        self._of_set += self._of_attempt

    def close_set(self) -> None:
        """All steps of the set are done."""
        self._whole.add(self._set)
        self._of_whole += self._of_set
        self.open_set()

    def by_sample(self, samples: tuple[int, ...]) -> Evaluation:
        """Another one, which counts the samples of one set.

        Args:
            samples: domain index of each.
        """
        ledger = self.attempt.empty(len(samples))
        return Evaluation(self._names, replace(self.forward, ledger=ledger), samples)

    def close(self, ranks: int) -> tuple[DomainStats, Samples | None] | None:
        """The global sums of the sets that are whole, and those of every sample where they are
        counted; None without any. Called by every rank.

        Args:
            ranks: how many count.

        Raises:
            IntegrityError: tokens are missing, or losses went past the plugin.
        """
        if not self._of_whole:
            return None
        self._whole.reduce()
        sums = self._whole.read(self._rows)
        check_conservation(sums.stats, sums.host, self._of_whole * ranks)
        return self._told(sums.stats)

    def read(self) -> DomainStats:
        """The sums of the present attempt on this rank; synchronises."""
        return self._told(self.attempt.read(self._rows).stats)[0]

    @property
    def _rows(self) -> tuple[str, ...]:
        """Names of a ledger's rows."""
        return self._names if self._samples is None else tuple(map(str, range(len(self._samples))))

    def _told(self, counted: DomainStats) -> tuple[DomainStats, Samples | None]:
        if self._samples is None:
            return counted, None
        samples = Samples(self._names, self._samples, counted.sums)
        return samples.stats(), samples
