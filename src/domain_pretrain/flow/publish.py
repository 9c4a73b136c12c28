"""Statistics go out: TensorBoard, W&B, ``domain_metrics.jsonl`` and the console."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from domain_pretrain.flow.console import Console, say
from domain_pretrain.flow.metrics_file import MetricsFile, check_log_dir
from domain_pretrain.report.layout import add_layout
from domain_pretrain.report.metrics import METRICS_FILE
from domain_pretrain.stats import Average, DomainStats, Split


@dataclass(frozen=True)
class Record:
    """A logging window or an evaluation, ready to be published.

    Attributes:
        split: where its tokens come from.
        iteration: the last training iteration it knows of.
        consumed_samples: the host's count of training samples at that iteration.
        stats: sums of the window or evaluation.
        consumed_tokens: training tokens so far by domain; None for an evaluation.
        consumed_domain_samples: training samples so far by domain; None for an evaluation.
        weights: the loss multipliers that were in force, by domain, a mean over the window's
            tokens; None where nothing reweights.
        reweighting: numbers about all of them by name, ``weighted_loss`` (nats, beside the raw
            loss) among them; None where nothing reweights.
        shares: each domain's part of the weighted tokens; None where nothing reweights.
        final: an evaluation after the end of training, hence after the last checkpoint: a run
            that resumes at this iteration does not take it over.
    """

    split: Split
    iteration: int
    consumed_samples: int
    stats: DomainStats
    consumed_tokens: Mapping[str, float] | None = None
    consumed_domain_samples: Mapping[str, int] | None = None
    weights: Mapping[str, float] | None = None
    reweighting: Mapping[str, float] | None = None
    shares: Mapping[str, float] | None = None
    final: bool = False


def reweighted(record: Record, weighted: DomainStats, numbers: Mapping[str, float]) -> Record:
    """The record with what reweighting did to its window.

    Args:
        record: of the window.
        weighted: its sums with every token's mask times its multiplier.
        numbers: the strategy's own.
    """
    total, weights, shares = weighted.total, {}, {}
    parts = dict(weighted)
    for name, totals in record.stats:
        # A domain whose multiplier was 0 has no weighted tokens, hence no totals.
        tokens = parts[name].tokens if name in parts else 0.0
        weights[name] = tokens / totals.tokens if totals.tokens else math.nan
        shares[name] = tokens / total.tokens if total.tokens else math.nan
    tokens = record.stats.total.tokens
    loss = total.loss_sum / tokens if tokens and not total.nonfinite else math.nan
    summary = {"weighted_loss": loss, **numbers}
    return replace(record, weights=weights, shares=shares, reweighting=summary)


class Publisher:
    """Lives on the one rank that owns the host's writers, from the moment its checkpoint is loaded.

    Args:
        log_dir: folder of ``domain_metrics.jsonl``; None writes no file.
        tensorboard: the host's ``SummaryWriter``, or None.
        wandb: the host's ``wandb`` module, or None.
        average: whether a domain's loss is the mean over tokens or over samples.
        out: takes the console's text.
        after_iteration: where this run starts, as :meth:`MetricsFile.open` takes it.

    Raises:
        ConfigError: ``log_dir`` cannot be used.
    """

    def __init__(
        self,
        log_dir: Path | None,
        tensorboard: Any | None,
        wandb: Any | None,
        average: Average,
        out: Callable[[str], None] = say,
        *,
        after_iteration: int | None,
    ) -> None:
        self._tensorboard = tensorboard
        self._wandb = wandb
        self._average = average
        self._out = out
        self._console = Console(average)
        self._layout_written = False
        self._file: MetricsFile | None = None
        if log_dir is not None:
            check_log_dir(log_dir)
            self._file = MetricsFile.open(Path(log_dir) / METRICS_FILE, after_iteration)

    def scalars(self, record: Record) -> None:
        """Points for TensorBoard and W&B, at the host's TensorBoard interval."""
        values = scalar_values(record, self._average)
        if self._tensorboard is not None:
            if not self._layout_written:
                note = add_layout(self._tensorboard, weights=record.weights is not None)
                if note:
                    self._out(note)
                self._layout_written = True
            for tag, value in values.items():
                self._tensorboard.add_scalar(tag, value, record.iteration)
            if record.final:  # the host may end before the writer's own thread gets to it
                self._tensorboard.flush()
        if self._wandb is not None and values:
            self._wandb.log(values, step=record.iteration)

    def line(self, record: Record) -> None:
        """A line of the metrics file and of the console, at the host's logging interval."""
        if self._file is not None:
            self._file.append(metrics_entry(record, self._average))
        if record.split == "train":
            self._out(self._console.train_line(record.stats, record.weights, record.reweighting))
        else:
            self._out(self._console.evaluation_table(record.split, record.iteration, record.stats))
        alarm = self._console.alarm(record.split, record.iteration, record.stats)
        if alarm:
            self._out(alarm)

    def close(self) -> None:
        """Close the metrics file; the writers are the host's."""
        if self._file is not None:
            self._file.close()


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
        if record.consumed_tokens is not None:
            values[f"channel-consumed/{name}"] = record.consumed_tokens[name]
    for name, value in (record.reweighting or {}).items():
        values[f"reweighting/{name.replace('_', '-')}"] = value
    return values


def metrics_entry(record: Record, average: Average) -> dict[str, Any]:
    """The record as one line of ``domain_metrics.jsonl`` (docs/metrics.md has the schema)."""
    total = record.stats.total
    domains: dict[str, dict[str, Any]] = {}
    for name, totals in record.stats:
        domain: dict[str, Any] = {
            "loss": _finite(totals.loss(average)),
            "loss_sum": totals.loss_sum,
            "tokens": _count(totals.tokens),
            "samples": totals.samples,
        }
        if average == "sample":
            domain["sample_loss_sum"] = totals.sample_loss_sum
        if totals.nonfinite:
            domain["nonfinite"] = totals.nonfinite
        if record.weights is not None:
            domain["weight"] = _finite(record.weights[name])
        if record.shares is not None:
            domain["share"] = _finite(record.shares[name])
        if record.consumed_tokens is not None:
            domain["consumed_tokens"] = _count(record.consumed_tokens[name])
        if record.consumed_domain_samples is not None:
            domain["consumed_samples"] = int(record.consumed_domain_samples[name])
        domains[name] = domain
    return {
        "iteration": int(record.iteration),
        "consumed_samples": int(record.consumed_samples),
        "split": record.split,
        **({"final": True} if record.final else {}),
        "lm_loss": _finite(total.loss()) if total.tokens else None,
        "domains": domains,
        **(
            {"reweighting": {key: _finite(value) for key, value in record.reweighting.items()}}
            if record.reweighting is not None
            else {}
        ),
    }


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _count(value: float) -> float | int:
    """A count as an integer; a sum of fractional masks stays a fraction."""
    return int(value) if float(value).is_integer() else value
