"""What is likely behind a jump: the data of one domain, or the optimizer that moves them all.

Of all domains that were read, how many moved at once; and did the gradient norm jump with them?
"""

from __future__ import annotations

import statistics
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


def beyond(change: float, expected: float, nats: float, part: float) -> bool:
    """Whether a change is large enough to matter, whatever the noise: it exceeds both limits."""
    return abs(change) > max(nats, part * abs(expected))


def jump_of_all(scores: Mapping[str, Score], nats: float, part: float) -> float | None:
    """Nats, by which nearly all domains jump at once: the median one of them.

    None where they do not, or by too little to matter: the weights move a little whenever one
    domain's data is far off, and in a large batch every domain shows it.
    """
    names = moved(scores)
    if len(scores) < 2 or len(names) < MOST * len(scores):
        return None
    change = statistics.median(scores[name].change for name in names)
    expected = statistics.median(scores[name].expected for name in names)
    return change if beyond(change, expected, nats, part) else None


def likely(scores: Mapping[str, Score], grad_z: float | None, nats: float, part: float) -> str:
    """One of the constants above.

    Args:
        scores: of all domains that were read and have one.
        grad_z: of the gradient norm; None where it is not known.
        nats, part: what a jump of all has to exceed: see :func:`beyond`.
    """
    names, count = moved(scores), len(scores)
    if count < 2 or not names:  # nothing to compare it with
        return UNCLEAR
    if jump_of_all(scores, nats, part) is not None:
        return OPTIMIZER
    few = max(1, FEW * count)
    far = sum(beyond(scores[name].change, scores[name].expected, nats, part) for name in names)
    if far > few:
        return UNCLEAR
    if len(names) > few or (grad_z is not None and grad_z >= MOVED):
        return DATA_MOVED_OPTIMIZER
    return DATA
