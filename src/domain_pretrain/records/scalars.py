"""A record as points of TensorBoard and W&B, and the exporters that write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from domain_pretrain.records.charts import add_layout
from domain_pretrain.records.console import document_line
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.record import Finding, Record
from domain_pretrain.stats import Average


class TensorBoard(Exporter):
    """Writes into the host's own event file.

    Args:
        writer: the host's ``SummaryWriter``.
        average: whether a domain's loss is the mean over tokens or over samples.
        out: takes a note for the console.
    """

    def __init__(self, writer: Any, average: Average, out: Callable[[str], None]) -> None:
        self._writer = writer
        self._average = average
        self._out = out
        self._layout_written = False

    def scalars(self, record: Record) -> None:
        """Points, and before the first of them the layout of the charts."""
        if not self._layout_written:
            note = add_layout(
                self._writer, weights=record.weights is not None, mix=record.mix is not None
            )
            if note:
                self._out(note)
            self._layout_written = True
        for tag, value in scalar_values(record, self._average).items():
            self._writer.add_scalar(tag, value, record.iteration)
        if record.final:  # the host may end before the writer's own thread gets to it
            self._writer.flush()

    def finding(self, finding: Finding) -> None:
        """A text, under the tag of its rule."""
        self._writer.add_text(f"alarms/{finding.rule}", as_text(finding), finding.iteration)
        self._writer.flush()

    def traced(self, finding: Finding) -> None:
        """The text again, with the documents."""
        if finding.documents:
            self.finding(finding)


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
    """``tag → value``; an absent domain has no tag, a non-finite one NaN (docs/metrics.md)."""
    train = record.split == "train"
    suffix = "" if train else f"-{record.split}"
    window_tokens = record.stats.total.tokens
    values: dict[str, float] = {}
    for name, totals in record.stats:
        values[f"channel-loss{suffix}/{name}"] = totals.loss(average)
        values[f"channel-ppl{suffix}/{name}"] = totals.ppl(average)
        if not train:
            continue
        if window_tokens:
            values[f"channel-tokens/{name}"] = totals.tokens / window_tokens
        values[f"channel-samples/{name}"] = totals.samples
        if record.weights is not None:
            values[f"channel-weight/{name}"] = record.weights[name]
        if record.shares is not None:
            values[f"channel-share/{name}"] = record.shares[name]
        if record.mix is not None:
            values[f"channel-mix/{name}"] = record.mix[name]
        if record.consumed_tokens is not None:
            values[f"channel-consumed/{name}"] = record.consumed_tokens[name]
    for name, totals in record.stats.parents():
        values[f"channel-loss{suffix}/{name}"] = totals.loss(average)
        values[f"channel-ppl{suffix}/{name}"] = totals.ppl(average)
        if train and window_tokens:
            values[f"channel-tokens/{name}"] = totals.tokens / window_tokens
    for name, value in (record.reweighting or {}).items():
        values[f"reweighting/{name.replace('_', '-')}"] = value
    return values
