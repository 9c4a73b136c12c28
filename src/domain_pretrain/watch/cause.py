"""What is likely behind a jump: the data of one domain, or the optimizer that moves them all.

Of all domains that were read, how many moved at once; and did the gradient norm jump with them?
"""

from __future__ import annotations

from collections.abc import Mapping

from domain_pretrain.watch.scores import Score

DATA = "data"
DATA_MOVED_OPTIMIZER = "data that moved the optimizer"
OPTIMIZER = "optimizer"
UNCLEAR = "unclear"

MOVED = 4.0  # standard deviations
FEW, MOST = 0.25, 0.75  # of the domains

ADVICE = {
    DATA: "Read the documents below; clean them, cut their samples (mix.skip), or go on: one batch "
    "rarely does lasting harm.",
    DATA_MOVED_OPTIMIZER: "Read the documents below; go back to a checkpoint before it and cut "
    "their samples (mix.skip), or lower --clip-grad.",
    OPTIMIZER: "Look at the learning rate, its warm-up and the gradient norm, not at the data: "
    "lower the rate, or go back to a checkpoint before it.",
    UNCLEAR: "Compare the learning rate, the gradient norm and the documents of that window.",
}


def moved(scores: Mapping[str, Score]) -> list[str]:
    """The domains that are further from where they were heading than noise brings them."""
    return [name for name, score in scores.items() if abs(score.z) > MOVED]


def likely(scores: Mapping[str, Score], grad_z: float | None) -> str:
    """One of the constants above.

    Args:
        scores: of all domains that were read and have one.
        grad_z: of the gradient norm; None where it is not known.
    """
    many, count = len(moved(scores)), len(scores)
    if count < 2 or not many:  # nothing to compare it with
        return UNCLEAR
    if many >= MOST * count:
        return OPTIMIZER
    if many > max(1, FEW * count):
        return UNCLEAR
    if grad_z is not None and grad_z >= MOVED:
        return DATA_MOVED_OPTIMIZER
    return DATA
