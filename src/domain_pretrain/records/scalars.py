"""A record as the points of curves, and the exporter that gives them to W&B."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from domain_pretrain.records.console import document_line
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.record import Finding, Record
from domain_pretrain.stats import Average


class WandB(Exporter):
    """Writes into the host's own run.

    Args:
        wandb: the host's ``wandb`` module.
        average: whether a domain's loss is the mean over tokens or over samples.
        out: takes a note for the console.
    """

    def __init__(
        self, wandb: Any, average: Average, out: Callable[[str], None] = lambda text: None
    ) -> None:
        self._wandb = wandb
        self._average = average
        self._out = out

    def scalars(self, record: Record) -> None:
        """Points."""
        values = scalar_values(record, self._average)
        if values:
            self._wandb.log(values, step=record.iteration)

    def scores(self, evaluated: Evaluated) -> None:
        """Points."""
        self._wandb.log(score_values(evaluated), step=evaluated.iteration)

    def finding(self, finding: Finding) -> None:
        """An alert, which W&B sends on as the user has asked it to."""
        if not hasattr(self._wandb, "alert"):  # what takes its place may have none
            return
        where = "all domains" if finding.domain is None else finding.domain
        level = {"info": "INFO", "warning": "WARN", "error": "ERROR"}[finding.severity]
        try:
            self._wandb.alert(title=f"{finding.rule}: {where}", text=as_text(finding), level=level)
        except Exception as error:  # no alarm ends a run
            self._out(f"channel loss | wandb.alert failed: {type(error).__name__}: {error}")


def as_text(finding: Finding) -> str:
    """A finding as Markdown: what, why, what to try, and which documents."""
    lines = [f"**{finding.severity}**, iteration {finding.iteration}: {finding.message}"]
    if finding.cause:
        lines.append(f"Likely cause: {finding.cause}.")
    if finding.advice:
        lines.append(finding.advice)
    documents = [f"* {document_line(one)}" for one in finding.documents]
    return "\n\n".join([*lines, *(["\n".join(documents)] if documents else [])])


def scalar_values(record: Record, average: Average) -> dict[str, float]:
    """``tag → value`` of all there is, ``channel-loss/finance`` and so on (docs/metrics.md)."""
    domains = domain_values(record, average)
    values = {
        f"channel-{metric}/{name}": value
        for name, own in domains.items()
        for metric, value in own.items()
    }
    values |= {
        f"expert-{metric}/{name}": value
        for name, own in expert_values(record).items()
        for metric, value in own.items()
    }
    return values | overall_values(record)


def expert_values(record: Record) -> Mapping[str, Mapping[str, float]]:
    """``domain → metric → value``, where experts were counted."""
    return {} if record.experts is None else record.experts.domains


def score_values(evaluated: Evaluated) -> dict[str, float]:
    """``tag → value``, ``eval-completion/finance`` and so on."""
    return {f"eval-{score.name}/{score.domain}": score.mean for score in evaluated.scores}


def overall_values(record: Record) -> dict[str, float]:
    """``tag → value`` of what is about no single domain."""
    # Of the host's numbers, the one that the host does not chart for the whole model.
    host = {name: n for name, n in (record.host or {}).items() if name == "max_attention_logit"}
    experts = {} if record.experts is None else record.experts.overall
    groups = (("reweighting", record.reweighting or {}), ("experts", experts), ("host", host))
    return {
        f"{group}/{name.replace('_', '-')}": value
        for group, numbers in groups
        for name, value in numbers.items()
    }


def domain_values(record: Record, average: Average) -> dict[str, dict[str, float]]:
    """``domain → metric → value``, domains first, then what several are parts of.

    These are ``… (all)`` where a domain has their name: ``news`` beside ``news/uk``. An absent
    domain has no entry, a non-finite one NaN.
    """
    train = record.split == "train"
    suffix = "" if train else f"-{record.split}"
    window_tokens = record.stats.total.tokens
    values: dict[str, dict[str, float]] = {}
    taken = frozenset(record.stats.names)
    parents = [
        (f"{name} (all)" if name in taken else name, totals)
        for name, totals in record.stats.parents()
    ]
    for name, totals in (*record.stats, *parents):
        own = values[name] = {
            f"loss{suffix}": totals.loss(average),
            f"ppl{suffix}": totals.ppl(average),
        }
        if train and window_tokens:
            own["tokens"] = totals.tokens / window_tokens
    for name, error in record.errors(average).items():
        values[name][f"error{suffix}"] = error
    for name, (risen, of_that) in (record.risen or {}).items():
        values[name][f"risen{suffix}"] = risen
        if of_that is not None:
            values[name][f"risen-error{suffix}"] = of_that
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
