"""Where records go: one interface for TensorBoard, W&B, files, the console, and others.

An exporter of another package is a function that makes one from its options and where the run
starts::

    @EXPORTERS.register("mlflow", MlflowOptions)
    def mlflow(options: MlflowOptions, start: Start) -> Exporter: ...

Its module is an entry point of the group ``domain_pretrain.exporters``, and the config asks for it
by name: ``exporters: {mlflow: {uri: …}}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.record import Event, Finding, Record
from domain_pretrain.rules.registry import Configured, Registry
from domain_pretrain.stats import Average


class Exporter:
    """What happens to records; what an exporter does not override, it leaves out.

    All methods are called on one rank, the one that owns the host's writers. What they raise ends
    the run: an exporter that may fail has to catch it.
    """

    def scalars(self, record: Record) -> None:
        """Points for curves, at the host's TensorBoard interval."""

    def line(self, record: Record) -> None:
        """A line for a log, at the host's logging interval, and for every evaluation."""

    def scores(self, evaluated: Evaluated) -> None:
        """What the probes have found, each time that they ran; never without a score."""

    def finding(self, finding: Finding) -> None:
        """What an alarm has found, right after the line of the window it was found in."""

    def traced(self, finding: Finding) -> None:
        """The same once more, later perhaps: with its documents, or with none where none are known.

        Called once for each finding.
        """

    def event(self, event: Event) -> None:
        """What happened to the run, when it happens."""

    def close(self) -> None:
        """The process ends; called once, and not at all where it is killed."""


@dataclass(frozen=True)
class Start:
    """Where a run starts, for exporters that go on with what an earlier one has written.

    Attributes:
        after_iteration: of the checkpoint that the run starts from, after which iterations come
            again; 0 for a fresh run; None where it does not train.
        log_dir: the folder of ``domain_metrics.jsonl``; None where there is none.
        average: whether a domain's loss is the mean over tokens or over samples.
    """

    after_iteration: int | None
    log_dir: Path | None
    average: Average


MakeExporter = Callable[[Any, Start], Exporter]
EXPORTERS: Registry[MakeExporter] = Registry("exporter", "domain_pretrain.exporters")


def configured(
    section: Mapping[str, Mapping[str, Any]], names: tuple[str, ...]
) -> list[Configured[MakeExporter]]:
    """The exporters that the config asks for, with checked options; nothing is opened yet.

    Args:
        section: ``exporters`` of the config.
        names: the domains.

    Raises:
        ConfigError: an unknown name or option.
    """
    return [
        EXPORTERS.build(name, given, names, key="exporters", where=f"exporters.{name}")
        for name, given in section.items()
    ]


class Tracer(Protocol):
    """Finds the documents behind findings, while training goes on."""

    def start(self, finding: Finding) -> None:
        """Take one on."""

    def done(self, *, wait: bool) -> list[Finding]:
        """Those that have become known, in order, with their documents or without.

        Args:
            wait: for all of them, though not for ever.
        """


class Publisher(Exporter):
    """Hands everything on to several exporters.

    Lives on the one rank that owns the host's writers, from the moment its checkpoint is loaded.

    Args:
        exporters: in the order in which they are called.
        tracer: of the documents behind findings; None: they are not looked for.
    """

    def __init__(self, exporters: Iterable[Exporter], tracer: Tracer | None = None) -> None:
        self.exporters: tuple[Exporter, ...] = tuple(exporters)
        self._tracer = tracer

    def scalars(self, record: Record) -> None:
        """See :class:`Exporter`."""
        for exporter in self.exporters:
            exporter.scalars(record)

    def line(self, record: Record) -> None:
        """See :class:`Exporter`."""
        for exporter in self.exporters:
            exporter.line(record)
        self._tell_traced(wait=False)

    def scores(self, evaluated: Evaluated) -> None:
        """See :class:`Exporter`."""
        for exporter in self.exporters:
            exporter.scores(evaluated)

    def finding(self, finding: Finding) -> None:
        """See :class:`Exporter`."""
        for exporter in self.exporters:
            exporter.finding(finding)
        if self._tracer is None:
            self.traced(finding)
        else:
            self._tracer.start(finding)

    def traced(self, finding: Finding) -> None:
        """See :class:`Exporter`."""
        for exporter in self.exporters:
            exporter.traced(finding)

    def _tell_traced(self, *, wait: bool) -> None:
        for finding in [] if self._tracer is None else self._tracer.done(wait=wait):
            self.traced(finding)

    def event(self, event: Event) -> None:
        """See :class:`Exporter`."""
        for exporter in self.exporters:
            exporter.event(event)

    def close(self) -> None:
        """See :class:`Exporter`."""
        self._tell_traced(wait=True)
        for exporter in self.exporters:
            try:
                exporter.close()
            except Exception as error:  # the others still have to be closed
                print(f"domain_pretrain: {type(exporter).__name__} cannot be closed: {error!r}")
        self.exporters = ()  # at the end of the process, there may be nothing left to close
