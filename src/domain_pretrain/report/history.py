"""What a metrics file tells of a run, read once, line by line, in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from domain_pretrain.records.reader import event_of, is_event, is_header, stream_lines
from domain_pretrain.records.record import Event
from domain_pretrain.report.series import Series
from domain_pretrain.stats import Average

START = "start"  # the event of a run that starts from nothing


@dataclass(frozen=True)
class Mark:
    """An event, and the training tokens before it."""

    event: Event
    tokens: float


@dataclass
class History:
    """A run.

    Attributes:
        domains: in the order of the config where the file tells it, else of first appearance.
        train, valid: losses by domain, nats.
        train_parents, valid_parents: of what several domains are part of, as ``finance`` is of
            ``finance/news``.
        host: the host's numbers by name: ``learning_rate``, ``grad_norm``, ``seconds`` of a window,
            ``tokens_per_second``; and of the whole window: ``lm_loss``, ``consumed_samples``.
        counts: samples of each window by domain (tokens, where the file has no samples).
        weights: multipliers by domain; empty without reweighting.
        mix: shares of the stream that follow the losses, by domain; empty where none do.
        averages: what its losses are means over; several, where a resume has changed that.
        valid_errors: standard error of each domain's last validation loss, where it is known.
        experts: entropy of each domain's load of experts; empty where none were counted.
        tokens, samples: that were trained on, by domain; samples as in ``counts``.
        corpus_tokens: tokens of each domain's training data, as far as the file tells them.
        marks: what happened, but for the start.
        begin_iteration: where training begins: a run that goes on counts on.
        end_tokens, end_iteration: where it ends, on either axis.
    """

    domains: list[str] = field(default_factory=list)
    train: Series = field(default_factory=Series)
    valid: Series = field(default_factory=Series)
    train_parents: Series = field(default_factory=Series)
    valid_parents: Series = field(default_factory=Series)
    host: Series = field(default_factory=Series)
    counts: Series = field(default_factory=Series)
    weights: Series = field(default_factory=Series)
    mix: Series = field(default_factory=Series)
    averages: set[Average] = field(default_factory=set)
    valid_errors: dict[str, float | None] = field(default_factory=dict)
    experts: Series = field(default_factory=Series)
    tokens: dict[str, float] = field(default_factory=dict)
    samples: dict[str, float] = field(default_factory=dict)
    corpus_tokens: dict[str, float] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)
    begin_iteration: int | None = None
    end_tokens: float = 0.0
    end_iteration: int = 0

    def add(self, entry: dict[str, Any]) -> None:
        """Add a line, as :func:`~domain_pretrain.records.reader.stream_lines` yields it."""
        if self.begin_iteration is None:  # the first line
            header = is_event(entry) and is_header(entry)
            self.begin_iteration = event_of(entry).iteration if header else 0
        if is_event(entry):
            self._add_event(entry)
            return
        domains = entry["domains"]
        for values in domains.values():
            self.averages.add("sample" if "sample_loss_sum" in values else "token")
            break  # all of a line have one
        if entry["split"] == "train":
            window = 0.0
            for name, values in domains.items():
                self.tokens[name] = self.tokens.get(name, 0.0) + values["tokens"]
                window += values["tokens"]
            self.end_tokens += window
            self.end_iteration = entry["iteration"]
            self._add_host(entry, window)
            self._add_domains(domains)
        if entry["split"] == "valid":
            errors = {name: one.get("error") for name, one in domains.items()}
            self.valid_errors |= {n: None if e is None else number(e) for n, e in errors.items()}
        curves = {
            "train": (self.train, self.train_parents),
            "valid": (self.valid, self.valid_parents),
        }.get(entry["split"], ())
        for series, of in zip(curves, (domains, entry.get("parents", {})), strict=False):
            if of or of is domains:
                losses = {name: number(values["loss"]) for name, values in of.items()}
                series.add(self.end_tokens, entry["iteration"], losses)

    def _add_event(self, entry: dict[str, Any]) -> None:
        event = event_of(entry)
        if is_header(entry):
            self.domains = list(dict.fromkeys([*self.domains, *entry["domains"]]))
            self.corpus_tokens.update(corpus_tokens(entry))
        if event.name != START:
            self.marks.append(Mark(event, self.end_tokens))

    def _add_host(self, entry: dict[str, Any], tokens: float) -> None:
        numbers = entry.get("host")
        told = numbers if isinstance(numbers, dict) else {}
        whole = {key: entry[key] for key in ("lm_loss", "consumed_samples") if key in entry}
        values = {name: number(value) for name, value in {**whole, **told}.items()}
        if values.get("seconds"):
            values["tokens_per_second"] = tokens / values["seconds"]
        if values:
            self.host.add(self.end_tokens, entry["iteration"], values)

    def _add_domains(self, domains: dict[str, dict[str, Any]]) -> None:
        counts = {
            name: number(values.get("samples", values["tokens"]))
            for name, values in domains.items()
        }
        for name, count in counts.items():
            self.samples[name] = self.samples.get(name, 0.0) + count
        self.counts.add(self.end_tokens, self.end_iteration, counts)
        for key, series in (
            ("weight", self.weights),
            ("mix", self.mix),
            ("expert_entropy", self.experts),
        ):
            values = {name: number(one[key]) for name, one in domains.items() if key in one}
            if values:
                series.add(self.end_tokens, self.end_iteration, values)


def read_history(path: str | Path) -> History:
    """Read a metrics file.

    Args:
        path: the file, or the folder that holds it.

    Raises:
        ConfigError: it cannot be read, or none of its lines can be used.
    """
    history = History()
    for entry in stream_lines(path):
        history.add(entry)
    seen = [*history.train.names, *history.valid.names]
    there = set(seen)
    named = [name for name in history.domains if name in there]
    history.domains = list(dict.fromkeys([*named, *seen]))
    return history


def corpus_tokens(header: Mapping[str, Any]) -> dict[str, float]:
    """Of a header: tokens of each domain's training data, as far as they are known."""
    sizes = header.get("corpus_tokens") or ()
    return {name: size for name, size in zip(header["domains"], sizes, strict=False) if size}


def number(value: Any) -> float:
    """A number of a line, where null is a number that is not finite."""
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if known else math.nan
    except OverflowError:  # a whole number beyond what is one
        return math.nan
