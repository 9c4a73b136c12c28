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

    def close(self, names: tuple[str, ...], ranks: int) -> DomainStats | None:
        """The global sums of the sets that are whole; None without any. Called by every rank.

        Args:
            names: the domains.
            ranks: how many count.

        Raises:
            IntegrityError: tokens are missing, or losses went past the plugin.
        """
        if not self._of_whole:
            return None
        self._whole.reduce()
        sums = self._whole.read(names)
        check_conservation(sums.stats, sums.host, self._of_whole * ranks)
        return sums.stats
