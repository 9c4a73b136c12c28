"""The sums of an evaluation: only what the host finished counts.

An evaluation reads one set of data or several; a set takes a known number of steps; a step may be
attempted more than once. A ledger holds the present attempt; what is whole moves one up.
"""

from __future__ import annotations

from domain_pretrain.flow.conservation import check_conservation
from domain_pretrain.flow.ledger import Ledger
from domain_pretrain.stats import DomainStats


class Evaluation:
    """attempt → step → set → evaluation, on every rank.

    Args:
        attempt: takes the sums of microbatches.
    """

    def __init__(self, attempt: Ledger) -> None:
        self.attempt = attempt
        self._set = attempt.empty()
        self._whole = attempt.empty()
        self._microbatches = 0  # per data-parallel rank, in the present set
        self._expected = 0  # in the sets that are whole

    def open(self) -> None:
        """Start an evaluation."""
        self._whole.open()
        self._expected = 0
        self.open_set()

    def open_set(self) -> None:
        """Start a set of data; what one before it left unfinished is forgotten."""
        self._set.open()
        self._microbatches = 0

    def open_attempt(self) -> None:
        """Start an attempt at a step; an earlier one is forgotten."""
        self.attempt.open()

    def close_step(self, microbatches: int) -> None:
        """The host takes the last attempt as its result.

        Args:
            microbatches: that it had, per data-parallel rank.
        """
        self._set.add(self.attempt)
        self._microbatches += microbatches
        self.attempt.open()

    def close_set(self) -> None:
        """All steps of the set are done."""
        self._whole.add(self._set)
        self._expected += self._microbatches
        self.open_set()

    def close(self, names: tuple[str, ...], ranks: int) -> DomainStats | None:
        """The global sums of the sets that are whole; None without any. Called by every rank.

        Args:
            names: the domains.
            ranks: how many count.

        Raises:
            IntegrityError: tokens are missing, or losses went past the plugin.
        """
        if not self._expected:
            return None
        self._whole.reduce()
        sums = self._whole.read(names)
        check_conservation(sums.stats, sums.host, self._expected * ranks)
        return sums.stats
