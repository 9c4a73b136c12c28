"""A record as one line of ``domain_metrics.jsonl``, and the exporter that writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domain_pretrain.json_file import finite
from domain_pretrain.records.compact import WIDE_UP_TO, compact
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.reader import METRICS_FILE
from domain_pretrain.records.record import Event, Experts, Record
from domain_pretrain.records.writer import LinesFile, check_log_dir
from domain_pretrain.stats import Average


class MetricsFile(Exporter):
    """Appends a line for each logged window, evaluation and event.

    Args:
        log_dir: the folder; made where it does not exist.
        average: whether a domain's loss is the mean over tokens or over samples.
        after_iteration: where this run starts, as :meth:`LinesFile.open` takes it.
        corpus_tokens: tokens of each domain's training data, as far as they are known.
        train_iters: at which iteration training ends; None where that is not known.

    Raises:
        LogFolderError: the folder cannot be used.
    """

    def __init__(
        self,
        log_dir: Path,
        average: Average,
        *,
        after_iteration: int | None,
        corpus_tokens: Mapping[str, float],
        train_iters: int | None = None,
    ) -> None:
        check_log_dir(log_dir)
        self._average = average
        self._after_iteration = after_iteration
        self._corpus_tokens = corpus_tokens
        self._train_iters = train_iters
        self._names: tuple[str, ...] | None = None  # of the header
        self._file = LinesFile.open(log_dir / METRICS_FILE, after_iteration)

    def line(self, record: Record) -> None:
        """Append, behind a header where there is none yet."""
        names = record.stats.names
        if names != self._names:
            start = self._after_iteration
            at = record.iteration if start is None else start
            event = Event("resume" if start else "start", at)
            self._file.append(header(event, names, self._corpus_tokens, self._train_iters))
            self._names = names
        entry = metrics_entry(record, self._average)
        if len(names) > WIDE_UP_TO:
            self._file.append(compact(entry, names), tight=True)
        else:
            self._file.append(entry)

    def event(self, event: Event) -> None:
        """Append, unless a start before this has told it of the same iteration."""
        self._file.append_once(event_entry(event))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def event_entry(event: Event) -> dict[str, Any]:
    """The event as one line of ``domain_metrics.jsonl``."""
    return {"event": event.name, "iteration": int(event.iteration), "detail": event.detail}


def header(
    event: Event,
    names: Sequence[str],
    corpus_tokens: Mapping[str, float],
    train_iters: int | None = None,
) -> dict[str, Any]:
    """The event that a run starts, with what holds for all lines behind it.

    Args:
        event: the start.
        names: the domains, to which compact lines refer by their place.
        corpus_tokens: tokens of each domain's training data; a domain may be missing.
        train_iters: at which iteration training ends; None where that is not known.
    """
    sizes = [corpus_tokens.get(name) for name in names]
    return {
        **event_entry(event),
        "domains": list(names),
        **({"corpus_tokens": sizes} if corpus_tokens else {}),
        **({} if train_iters is None else {"train_iters": train_iters}),
    }


def metrics_entry(record: Record, average: Average) -> dict[str, Any]:
    """The record as one line of ``domain_metrics.jsonl`` (docs/metrics.md has the schema)."""
    total = record.stats.total
    domains: dict[str, dict[str, Any]] = {}
    errors = record.errors(average)
    for name, totals in record.stats:
        domain: dict[str, Any] = {
            "loss": finite(totals.loss(average)),
            "loss_sum": totals.loss_sum,
            "tokens": _count(totals.tokens),
            "samples": totals.samples,
        }
        if average == "sample":
            domain["sample_loss_sum"] = totals.sample_loss_sum
        if record.samples is not None:
            domain["error"] = errors.get(name)
        if totals.nonfinite:
            domain["nonfinite"] = totals.nonfinite
        if record.weights is not None:
            domain["weight"] = finite(record.weights[name])
        if record.shares is not None:
            domain["share"] = finite(record.shares[name])
        if record.mix is not None:
            domain["mix"] = record.mix[name]
        if record.consumed_tokens is not None:
            domain["consumed_tokens"] = _count(record.consumed_tokens[name])
        if record.consumed_domain_samples is not None:
            domain["consumed_samples"] = int(record.consumed_domain_samples[name])
        if record.experts is not None:
            numbers = record.experts.domains.get(name, {})
            domain |= {f"expert_{key}": finite(value) for key, value in numbers.items()}
        domains[name] = domain
    parents = {
        name: {
            "loss": finite(totals.loss(average)),
            "loss_sum": totals.loss_sum,
            "tokens": _count(totals.tokens),
        }
        for name, totals in record.stats.parents()
    }
    return {
        "iteration": int(record.iteration),
        "consumed_samples": int(record.consumed_samples),
        "split": record.split,
        **({"final": True} if record.final else {}),
        "lm_loss": finite(total.loss()) if total.tokens else None,
        "domains": domains,
        **({"parents": parents} if parents else {}),
        **{
            key: {name: finite(value) for name, value in numbers.items()}
            for key, numbers in (("reweighting", record.reweighting), ("host", record.host))
            if numbers is not None
        },
        **({} if record.risen is None else _risen(record.risen)),
        **({} if record.experts is None else {"experts": _of_experts(record.experts)}),
    }


def _risen(risen: Mapping[str, tuple[float, float | None]]) -> dict[str, Any]:
    """By name, as the other numbers about some domains are."""
    rise = {name: finite(one) for name, (one, _) in risen.items()}
    return {"risen": rise, "risen_error": {name: error for name, (_, error) in risen.items()}}


def _of_experts(experts: Experts) -> dict[str, Any]:
    shape = {"layers": len(experts.layers), "count": experts.load.shape[-1], "topk": experts.topk}
    return {**shape, **{name: finite(value) for name, value in experts.overall.items()}}


def _count(value: float) -> float | int:
    """A count as an integer; a sum of fractional masks stays a fraction."""
    return int(value) if float(value).is_integer() else value
