"""How far a model is above its base, by domain: what was forgotten, on the same samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from domain_pretrain.records.samples import Samples, dump, load
from domain_pretrain.records.score import Part, Score

NAME = "above-base"  # of the score; nats per token, and below 0 where the base was worse


class AboveBase:
    """The base model's losses on the fixed set, measured once, and what is told of them.

    Args:
        samples: of each domain.
        state: of :meth:`state_dict`; of a set of another size, it is measured again.
    """

    def __init__(self, samples: int, state: Mapping[str, Any] | None = None) -> None:
        self._samples = samples
        self._base: dict[str, Score] = {}
        if state is not None and state["samples"] == samples:
            # One that was written without the parts goes on, and has no standard error.
            parts = state.get("parts", {})
            for name, (total, count) in state["base"].items():
                whole = Score("loss", name, total, int(count), higher_is_better=False)
                self._base[name] = load(parts.get(name, []), name) or whole

    @property
    def known(self) -> bool:
        """Whether it has been measured."""
        return bool(self._base)

    def take(self, base: Samples) -> None:
        """Keep what the base had."""
        found = {name: base.score(name) for name in base.names}
        self._base = {name: score for name, score in found.items() if score is not None}

    def scores(self, samples: Samples) -> tuple[Score, ...]:
        """Of each domain that both have; of other samples (the data changed): none, and the base
        is no longer known."""
        found = []
        for name, base in self._base.items():
            now = samples.score(name) if name in samples.names else None
            if now is None:
                continue
            if not _same(base, now):
                self._base = {}
                return ()
            found.append(_above(base, now))
        return tuple(found)

    def state_dict(self) -> dict[str, Any]:
        """Python primitives, the same on every rank."""
        if not self._base:
            return {}
        return {
            "samples": self._samples,
            "base": {name: [score.sum, score.count] for name, score in self._base.items()},
            "parts": {name: dump(score) for name, score in self._base.items()},
        }


def _same(base: Score, now: Score) -> bool:
    """Whether they are of the same samples, as far as their tokens tell."""
    old, new = ([part.count for part in one.parts] for one in (base, now))
    return base.count == now.count and (not old or old == new)


def _above(base: Score, now: Score) -> Score:
    """Sample by sample, so that what makes one hard for both cancels out: the error of this mean
    is that which :func:`.difference` gives for the two."""
    pairs = zip(base.parts, now.parts, strict=bool(base.parts))
    parts = tuple(Part(one.name, one.sum - old.sum, one.count) for old, one in pairs)
    above = now.sum - base.sum
    return Score(NAME, now.domain, above, now.count, higher_is_better=False, parts=parts)
