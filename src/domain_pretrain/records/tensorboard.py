"""TensorBoard: it gives a colour, a name and a switch to each *run*, so each domain is one.

Beside the host's event file, ``domains/<domain>`` has one for each domain, all with the same tags
(``channel/<metric>``, and ``eval/<score>`` of what probes found): a tag is a chart, a domain a
curve in it. Where that cannot be (too many domains, a writer that is not PyTorch's own), all of
them go into the host's file, under tags with their names.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from domain_pretrain.records.charts import add_layout
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.record import Finding, Record
from domain_pretrain.records.scalars import (
    as_text,
    domain_values,
    expert_values,
    overall_values,
    scalar_values,
    score_values,
)
from domain_pretrain.stats import Average

FOLDER = "domains"
EVENTS = "events.out.tfevents."  # how TensorBoard's files begin
# Of TensorBoard's page, in which charts stand side by side: of the data, of what probes ask, and of
# the experts.
SECTION, PROBES, EXPERTS = "channel", "eval", "expert"
RUNS_UP_TO = 50  # domains: each has a file, a thread that writes it, and a row in the list of runs


class TensorBoard(Exporter):
    """Writes beside the host's event file, or into it.

    Args:
        writer: the host's ``SummaryWriter``.
        average: whether a domain's loss is the mean over tokens or over samples.
        out: takes a note for the console.
        after_iteration: where this run starts, as :class:`.Start` has it.
        hyperparameters: of the host, by name.
        config: what the plugin's config says, by dotted key; JSON values.
    """

    def __init__(
        self,
        writer: Any,
        average: Average,
        out: Callable[[str], None],
        *,
        after_iteration: int | None,
        hyperparameters: Mapping[str, Any],
        config: Mapping[str, Any],
    ) -> None:
        self._writer = writer
        self._average = average
        self._out = out
        self._open: DomainRuns | None = None
        self._runs: DomainRuns | None = None  # where records go, once they do
        self._begun = False
        if _is_pytorchs(writer):
            if after_iteration is not None:
                _add_settings(writer, after_iteration, hyperparameters, config)
            if not _is_mirrored():
                self._open = DomainRuns(writer, after_iteration)

    def scalars(self, record: Record) -> None:
        """Points."""
        if not self._begun:
            self._begin(record)
        values = scalar_values(record, self._average)
        if self._runs is not None:
            values = overall_values(record)
            for name, own in domain_values(record, self._average).items():
                self._runs.add(name, own, record.iteration)
            for name, numbers in expert_values(record).items():
                self._runs.add(name, numbers, record.iteration, EXPERTS)
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, record.iteration)
        if record.final:  # the host may end before the writers' own threads get to it
            self._writer.flush()
            if self._runs is not None:
                self._runs.flush()

    def scores(self, evaluated: Evaluated) -> None:
        """Points: a chart for each score."""
        runs = self._runs_of([score.domain for score in evaluated.scores])
        if runs is None:
            for tag, value in score_values(evaluated).items():
                self._writer.add_scalar(tag, value, evaluated.iteration)
            self._writer.flush()
            return
        for score in evaluated.scores:
            values = {score.name: score.mean}
            runs.add(score.domain, values, evaluated.iteration, PROBES)
        runs.flush()  # seldom, and the host may end before the next point

    def finding(self, finding: Finding) -> None:
        """A text, under the tag of its rule."""
        self._writer.add_text(f"alarms/{finding.rule}", as_text(finding), finding.iteration)
        self._writer.flush()

    def traced(self, finding: Finding) -> None:
        """The text again, with the documents."""
        if finding.documents:
            self.finding(finding)

    def close(self) -> None:
        """Close what the host does not know of."""
        if self._open is not None:
            self._open.close()

    def _begin(self, record: Record) -> None:
        """With the first points: the domains' runs, or the layout of the charts."""
        self._begun = True
        self._runs = self._runs_of(record.stats.names)
        if self._runs is not None:
            return
        weights, mix = record.weights is not None, record.mix is not None
        note = add_layout(self._writer, weights=weights, mix=mix)
        if note:
            self._out(note)

    def _runs_of(self, names: Iterable[str]) -> DomainRuns | None:
        """The runs, with these domains among them; None: their points go into the host's file."""
        names = list(dict.fromkeys(names))
        if self._open is None or len(names) > RUNS_UP_TO or _is_mirrored():
            return None
        self._open.know(names)
        return self._open


class DomainRuns:
    """A writer for each domain, opened with its first point: a domain without tokens has none.

    Args:
        host: the host's writer; the folders are in its own.
        after_iteration: where this run starts; of what earlier ones wrote, TensorBoard then shows
            what is in force, as the metrics file does, also of domains that do not come again.
    """

    def __init__(self, host: Any, after_iteration: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._host = host
        self._make = SummaryWriter
        self._folders: dict[str, str] = {}
        # At 0 there is no checkpoint, and nothing stays.
        self._purge_step = after_iteration + 1 if after_iteration else after_iteration
        self._writers: dict[str, Any] = {}  # by folder
        if after_iteration is not None:
            # A domain that comes again goes on in this very file: TensorBoard reads files in the
            # order of their names, and what follows must not come before the mark.
            top = Path(host.log_dir, FOLDER)
            for folder in sorted({path.parent for path in top.rglob(f"{EVENTS}*")}):
                self._writer_of(folder.relative_to(top).as_posix()).flush()

    def know(self, names: Iterable[str]) -> None:
        """Have a folder for these domains, and for what they are parts of; a folder stays."""
        self._folders = folders([*self._folders, *names])

    def add(
        self, name: str, values: Mapping[str, float], step: int, section: str = SECTION
    ) -> None:
        """Points of a domain, or of what several are parts of: metric → value."""
        if name not in self._folders:  # of several domains, with the name of one
            self.know([name])
        writer = self._writer_of(self._folders[name])
        for metric, value in values.items():
            writer.add_scalar(f"{section}/{metric}", value, step)

    def _writer_of(self, folder: str) -> Any:
        """That of a folder; a new one begins with a mark from which step on points make way."""
        if folder not in self._writers:
            self._writers[folder] = self._make(
                os.path.join(self._host.log_dir, FOLDER, folder),
                purge_step=self._purge_step,
                max_queue=self._host.max_queue,
                flush_secs=self._host.flush_secs,
            )
        return self._writers[folder]

    def flush(self) -> None:
        """To the disk, now."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close all; a point after that opens its file again."""
        for writer in self._writers.values():
            writer.close()


def folders(names: Iterable[str]) -> dict[str, str]:
    """name → relative folder, for the domains and for what they are parts of.

    A name is kept where any file system can have it, also one that does not tell ``Code`` from
    ``code``; ``/`` parts folders.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(path for one in names for path in _with_parents(one)):
        # 60 characters are 240 bytes at most, which every file system takes.
        safe = "/".join(re.sub(r"^\.|[^\w.-]|^$", "_", part)[:60] for part in name.split("/"))
        folder, number = safe, 1
        while _folded(folder) in taken:
            number += 1
            folder = f"{safe}~{number}"
        taken.add(_folded(folder))
        found[name] = folder
    return found


def _with_parents(name: str) -> Iterable[str]:
    parts = name.split("/")
    return ("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _folded(folder: str) -> str:
    return unicodedata.normalize("NFKC", folder).casefold()


def _is_pytorchs(writer: Any) -> bool:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # without tensorboard, the host's writer is something else
        return False
    return isinstance(writer, SummaryWriter)


def _is_mirrored() -> bool:
    """Whether somebody listens at the class: he would not know a domain's curve from another's.

    ``swanlab.sync_tensorboard_torch()`` does, which takes the tag as the name of a curve.
    """
    from torch.utils.tensorboard import SummaryWriter

    add = SummaryWriter.add_scalar
    return hasattr(add, "__wrapped__") or add.__module__ != SummaryWriter.__module__


def _add_settings(
    writer: Any, step: int, hyperparameters: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """The tabs HParams and Text."""
    from torch.utils.tensorboard.summary import hparams

    given = (*hyperparameters.items(), *config.items())
    values = {name: value for name, value in given if _is_number_or_word(value)}
    if values:
        # Without a list of metrics, TensorBoard offers all there are, of every domain.
        _, started, _ = hparams(values, {})
        writer.file_writer.add_summary(started)
    if config:
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        writer.add_text("domain_pretrain", f"```yaml\n{text}```", step)


def _is_number_or_word(value: Any) -> bool:
    return isinstance(value, (bool, int, str)) or (
        isinstance(value, float) and math.isfinite(value)
    )
