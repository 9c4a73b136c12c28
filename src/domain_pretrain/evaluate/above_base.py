"""How far a model is above its base, by domain: what was forgotten, on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain_pretrain.records.score import Score
from domain_pretrain.stats import DomainStats

NAME = "above-base"  # of the score; nats per token, and below 0 where the base was worse


class AboveBase:
    """The base model's losses on the fixed set, measured once, and what is told of them.

    Args:
        samples: of each domain.
        state: of :meth:`state_dict`; of a set of another size, it is measured again.
    """

    def __init__(self, samples: int, state: Mapping[str, Any] | None = None) -> None:
        self._samples = samples
        self._base: dict[str, list[float]] = {}  # Σ loss in nats, and tokens
        if state is not None and state["samples"] == samples:
            self._base = dict(state["base"])

    @property
    def known(self) -> bool:
        """Whether it has been measured."""
        return bool(self._base)

    def take(self, base: DomainStats) -> None:
        """Keep what the base had."""
        self._base = {
            name: [totals.loss_sum, totals.tokens] for name, totals in base if not totals.nonfinite
        }

    def scores(self, stats: DomainStats) -> tuple[Score, ...]:
        """Of each domain that both have; of other samples (the data changed): none, and the base
        is no longer known."""
        found = []
        for name, totals in stats:
            loss_sum, tokens = self._base.get(name, (0.0, 0.0))
            if tokens and tokens != totals.tokens:
                self._base = {}
                return ()
            if tokens and not totals.nonfinite:
                above = totals.loss_sum - loss_sum
                found.append(Score(NAME, name, above, int(tokens), higher_is_better=False))
        return tuple(found)

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, the same on every rank."""
        return {"samples": self._samples, "base": self._base} if self._base else {}
