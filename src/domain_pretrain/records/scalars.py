"""A record as the points of curves, and the exporter that gives them to W&B."""

from __future__ import annotations

from typing import Any

from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.record import Record
from domain_pretrain.stats import Average


class WandB(Exporter):
    """Writes into the host's own run.

    Args:
        wandb: the host's ``wandb`` module.
        average: whether a domain's loss is the mean over tokens or over samples.
    """

    def __init__(self, wandb: Any, average: Average) -> None:
        self._wandb = wandb
        self._average = average

    def scalars(self, record: Record) -> None:
        """Points."""
        values = scalar_values(record, self._average)
        if values:
            self._wandb.log(values, step=record.iteration)


def scalar_values(record: Record, average: Average) -> dict[str, float]:
    """``tag → value`` of all there is, ``channel-loss/finance`` and so on (docs/metrics.md)."""
    domains = domain_values(record, average)
    values = {
        f"channel-{metric}/{name}": value
        for name, own in domains.items()
        for metric, value in own.items()
    }
    return values | overall_values(record)


def overall_values(record: Record) -> dict[str, float]:
    """``tag → value`` of what is about no single domain."""
    return {
        f"reweighting/{name.replace('_', '-')}": value
        for name, value in (record.reweighting or {}).items()
    }


def domain_values(record: Record, average: Average) -> dict[str, dict[str, float]]:
    """``domain → metric → value``, domains first, then what several are parts of.

    An absent domain has no entry, a non-finite one NaN.
    """
    train = record.split == "train"
    suffix = "" if train else f"-{record.split}"
    window_tokens = record.stats.total.tokens
    values: dict[str, dict[str, float]] = {}
    for name, totals in (*record.stats, *record.stats.parents()):
        own = values[name] = {
            f"loss{suffix}": totals.loss(average),
            f"ppl{suffix}": totals.ppl(average),
        }
        if train and window_tokens:
            own["tokens"] = totals.tokens / window_tokens
    if not train:
        return values
    more = {
        "weight": record.weights,
        "share": record.shares,
        "mix": record.mix,
        "consumed": record.consumed_tokens,
    }
    for name, totals in record.stats:
        values[name]["samples"] = totals.samples
        values[name] |= {metric: given[name] for metric, given in more.items() if given is not None}
    return values
