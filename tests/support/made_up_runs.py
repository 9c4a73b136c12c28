"""A run of which only the numbers exist: falling losses with noise, window by window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from domain_pretrain.records.record import Experts, Finding
from domain_pretrain.stats import SCALE, Column, DomainStats, Split
from domain_pretrain.watch import Known, Watch
from domain_pretrain.watch.section import Watching
from domain_pretrain.watch.watch import DEFAULT

NAMES = ("general", "code", "maths", "rare")
SAMPLES = {"general": 32, "code": 8, "maths": 8, "rare": 2}
TOKENS = 64  # of a sample
NOISE = 0.3  # nats, of one sample


def stats_of(
    names: tuple[str, ...],
    losses: Mapping[str, float],
    samples: Mapping[str, int],
    nonfinite: Mapping[str, int] | None = None,
) -> DomainStats:
    """Of the domains that have a loss."""
    sums = np.zeros((len(names) + 1, len(Column)), np.int64)
    for row, name in enumerate(names):
        if name not in losses or not samples[name]:
            continue
        tokens = samples[name] * TOKENS
        sums[row, Column.TOKENS] = tokens * SCALE[Column.TOKENS]
        sums[row, Column.LOSS] = round(losses[name] * tokens * SCALE[Column.LOSS])
        sums[row, Column.SAMPLES] = samples[name]
        sums[row, Column.NONFINITE] = (nonfinite or {}).get(name, 0)
    return DomainStats(names, sums)


def only(*alarms: str, **options: Any) -> Watching:
    """The section of a config that has these alarms on, and no other."""
    chosen = {name: options.get(name, {}) for name in alarms}
    return Watching(alarms={**dict.fromkeys(DEFAULT, False), **chosen})


class MadeUpRun:
    """Windows of one step each.

    Args:
        section: of the config.
        known: of the data.
        seed: of the noise.
        names: the domains, in any order.
    """

    def __init__(
        self,
        section: Watching,
        known: Known | None = None,
        seed: int = 0,
        names: tuple[str, ...] = NAMES,
    ) -> None:
        self.watch = Watch(section, names, known)
        self.names, self.iteration, self.consumed = names, 0, 0
        self._rng = np.random.default_rng(seed)

    def expected(self) -> dict[str, float]:
        """Losses without noise, as a small model's fall."""
        fall = 3.0 * (1 + self.iteration / 20) ** -0.7
        return {name: 1.5 + fall + 0.2 * row for row, name in enumerate(NAMES)}

    def step(
        self,
        add: Mapping[str, float] | None = None,
        losses: Mapping[str, float] | None = None,
        samples: Mapping[str, int] | None = None,
        read: int = 0,
        nonfinite: Mapping[str, int] | None = None,
        grad_norm: float = 1.0,
        rate: float = 1e-3,
        experts: Experts | None = None,
    ) -> list[Finding]:
        """One window of training.

        Args:
            add: nats on top of what is expected, by domain.
            losses: in place of what is expected, by domain; with the noise.
            samples: that have a token, in place of :data:`SAMPLES`.
            read: in all, with a token or without; else as many as either of these says.
            nonfinite: tokens.
            grad_norm, rate: of the host.
            experts: that its tokens went to.
        """
        self.iteration += 1
        count = {**SAMPLES, **(samples or {})}
        read = read or sum(max(count[name], SAMPLES[name]) for name in NAMES)
        self.consumed += read
        self.watch.trained(read)
        noise = {name: self._rng.normal(0, NOISE / np.sqrt(max(count[name], 1))) for name in NAMES}
        grad = grad_norm * float(np.exp(self._rng.normal(0, 0.1)))
        wanted = {**self.expected(), **(losses or {})}
        got = {name: wanted[name] + noise[name] + (add or {}).get(name, 0.0) for name in NAMES}
        host = {"learning_rate": rate, "grad_norm": grad}
        stats = stats_of(self.names, got, count, nonfinite)
        seen = self.watch.window(self.iteration, self.consumed, stats, host)
        return self.watch.read(replace(seen, experts=experts))

    def steps(self, count: int, **how: Any) -> list[Finding]:
        """What is found in so many windows."""
        return [finding for _ in range(count) for finding in self.step(**how)]

    def evaluate(
        self,
        losses: Mapping[str, float],
        split: Split = "valid",
        errors: Mapping[str, float] | None = None,
    ) -> list[Finding]:
        """One evaluation of 64 samples of every domain that is given."""
        stats = stats_of(self.names, losses, dict.fromkeys(losses, 64))
        return self.watch.read(self.watch.evaluation(split, self.iteration, stats, errors or {}))
