"""A record as one line of ``domain_metrics.jsonl``, and the exporter that writes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.reader import METRICS_FILE
from domain_pretrain.records.record import Event, Record
from domain_pretrain.records.writer import LinesFile, check_log_dir
from domain_pretrain.stats import Average


class MetricsFile(Exporter):
    """Appends a line for each logged window, evaluation and event.

    Args:
        log_dir: the folder; made where it does not exist.
        average: whether a domain's loss is the mean over tokens or over samples.
        after_iteration: where this run starts, as :meth:`LinesFile.open` takes it.

    Raises:
        LogFolderError: the folder cannot be used.
    """

    def __init__(self, log_dir: Path, average: Average, *, after_iteration: int | None) -> None:
        check_log_dir(log_dir)
        self._average = average
        self._file = LinesFile.open(log_dir / METRICS_FILE, after_iteration)

    def line(self, record: Record) -> None:
        """Append."""
        self._file.append(metrics_entry(record, self._average))

    def event(self, event: Event) -> None:
        """Append."""
        self._file.append(
            {"event": event.name, "iteration": event.iteration, "detail": event.detail}
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
