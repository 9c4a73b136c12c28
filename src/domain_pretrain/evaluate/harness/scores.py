"""Scores of what lm-eval found, with a part for each document where that adds up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

from lm_eval.api.metrics import bits_per_byte, mean

from domain_pretrain.evaluate.harness.tasks import Named
from domain_pretrain.records.score import Part, Score


def scores_of(named: Named, found: Mapping[str, Any]) -> Iterator[Score]:
    """A score for each metric of a task; of a group, over all documents of its tasks.

    Args:
        named: the task or group.
        found: what ``lm_eval.evaluate`` returns, with samples.
    """
    parts: defaultdict[tuple[str, str], list[Part | None]] = defaultdict(list)
    better: dict[tuple[str, str], bool] = {}
    for name, task in named.tasks.items():
        for sample in found["samples"][name]:
            for metric in sample["metrics"]:
                which = metric, sample["filter"]
                parts[which].append(
                    _part(
                        f"{name}:{sample['doc_id']}",
                        sample[metric],
                        task.aggregation().get(metric, mean),
                    )
                )
                better[which] = found["higher_is_better"][name].get(metric) is not False
    for (metric, kept), own in parts.items():
        title = f"harness_{named.name}_{metric}" + ("" if kept == "none" else f"_{kept}")
        higher = better[metric, kept]
        whole = [part for part in own if part is not None]
        if len(whole) == len(own):
            score = Score.of(title, named.domain, whole, higher_is_better=higher)
            if score is not None:
                yield score
        elif len(named.tasks) == 1:  # over several tasks, there is no such number
            (name,) = named.tasks
            value = found["results"][name][f"{metric},{kept}"]
            if isinstance(value, Real) and math.isfinite(value):
                yield Score(title, named.domain, float(value), 1, higher)


def _part(name: str, value: Any, aggregation: Any) -> Part | None:
    """A document's, if the metric is a sum over documents by a count."""
    if aggregation is bits_per_byte:
        nats, size = value
        return Part(name, -float(nats) / math.log(2), int(size))
    if aggregation is mean and isinstance(value, Real) and math.isfinite(value):
        return Part(name, float(value), 1)
    return None
