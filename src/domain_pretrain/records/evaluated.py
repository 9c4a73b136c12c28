"""What probes found at one point of a run: a line of ``domain_evaluations.jsonl``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from domain_pretrain.json_file import finite
from domain_pretrain.records.score import Part, Score

EVALUATIONS_FILE = "domain_evaluations.jsonl"


@dataclass(frozen=True)
class Evaluated:
    """The scores of one model.

    Attributes:
        iteration: the last training iteration of the model; 0: of the base, before any.
        consumed_samples: the host's count of training samples at that iteration.
        scores: by probe, then by domain.
        final: after the end of training, as :attr:`.Record.final` has it.
    """

    iteration: int
    consumed_samples: int
    scores: tuple[Score, ...]
    final: bool = False

    def dump(self) -> dict[str, Any]:
        """As JSON has it: null for a sum that is not finite, which a broken model's may be.

        A probe may have counted with booleans, or with numpy.
        """
        return {
            "iteration": self.iteration,
            "consumed_samples": self.consumed_samples,
            **({"final": True} if self.final else {}),
            "scores": [
                {
                    "name": score.name,
                    "domain": score.domain,
                    "sum": finite(float(score.sum)),
                    "count": int(score.count),
                    "higher_is_better": score.higher_is_better,
                    "parts": [
                        [part.name, finite(float(part.sum)), int(part.count)]
                        for part in score.parts
                    ],
                }
                for score in self.scores
            ],
        }

    @classmethod
    def load(cls, entry: Mapping[str, Any]) -> Evaluated:
        """What :meth:`dump` gave.

        Raises:
            KeyError, TypeError: it is something else.
        """
        return cls(
            entry["iteration"],
            entry["consumed_samples"],
            tuple(
                Score(
                    **{
                        **score,
                        "sum": _number(score["sum"]),
                        "parts": tuple(
                            Part(name, _number(value), count)
                            for name, value, count in score["parts"]
                        ),
                    }
                )
                for score in entry["scores"]
            ),
            entry.get("final", False),
        )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
