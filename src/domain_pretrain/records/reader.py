"""``domain_metrics.jsonl``, ``domain_events.jsonl`` and ``domain_evaluations.jsonl`` as they are
read: one JSON object per line, the last one possibly torn.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain_pretrain.errors import ConfigError, first_problem, shorten
from domain_pretrain.process import notice
from domain_pretrain.records.compact import expand
from domain_pretrain.records.evaluated import EVALUATIONS_FILE, Evaluated
from domain_pretrain.records.record import Event, Finding, Severity
from domain_pretrain.records.tail import Tail
from domain_pretrain.stats import Split

METRICS_FILE = "domain_metrics.jsonl"
EVENTS_FILE = "domain_events.jsonl"

# No sum of a run comes near it; what is larger would overflow in a reader's own sums.
_LARGEST = 1e30
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-_LARGEST, le=_LARGEST)]
_Count = Annotated[_Number, Field(ge=0)]
_Iteration = Annotated[int, Field(strict=True, ge=0, le=2**63)]


class _Domain(BaseModel):
    """What every reader needs of a domain; docs/metrics.md has all keys."""

    loss: _Number | None
    loss_sum: _Number
    tokens: _Count
    samples: _Count = 0  # old files, and parents, do not say
    sample_loss_sum: _Number = 0


class _Wide(BaseModel):
    iteration: _Iteration
    split: Split
    domains: dict[str, _Domain]
    parents: dict[str, _Domain] = {}


class _Columns(BaseModel):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[_Number | None]]

    # Without domains there is no column.
    loss_sum: list[_Number] = []
    tokens: list[_Count] = []
    samples: list[_Count] = []
    sample_loss_sum: list[_Number] | None = None


class _Compact(BaseModel):
    iteration: _Iteration
    split: Split
    present: list[Annotated[int, Field(strict=True, ge=0)]] | None = None
    columns: _Columns
    parents: dict[str, _Domain] = {}

    @model_validator(mode="after")
    def _check(self) -> _Compact:
        columns = self.columns
        needed = [columns.loss_sum, columns.tokens, columns.samples]
        if columns.sample_loss_sum is not None:
            needed.append(columns.sample_loss_sum)
        lengths = set(map(len, needed)) | set(map(len, columns.__pydantic_extra__.values()))
        if len(lengths) > 1:
            raise ValueError("its columns should be of one length")
        if self.present is not None and self.present != sorted(set(self.present)):
            raise ValueError("present should name each domain once, in order")
        return self


class _Event(BaseModel):
    event: str
    iteration: _Iteration
    detail: str
    train_iters: _Iteration | None = None
    domains: list[str] | None = None
    corpus_tokens: list[_Count | None] | None = None


class _Finding(BaseModel):
    finding: str
    domain: str | None
    iteration: _Iteration
    severity: Severity
    message: str
    cause: str = ""
    evidence: dict[str, Any] = {}
    documents: tuple[dict[str, Any], ...] = ()
    advice: str = ""
    final: bool = False


class _Score(BaseModel):
    name: str
    domain: str
    sum: _Number | None
    count: Annotated[int, Field(ge=1)]
    higher_is_better: bool
    parts: list[tuple[str, _Number | None, Annotated[int, Field(ge=0)]]] = []


class _Evaluated(BaseModel):
    iteration: _Iteration
    consumed_samples: Annotated[int, Field(ge=0)]
    scores: list[_Score]
    final: bool = False


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One line of the file, as it stands there; None where it is torn or foreign."""
    try:
        return _parse(line)
    except ValueError:
        return None


def _parse(line: bytes) -> dict[str, Any]:
    """The line as it is; a ValueError says in a few words why it is not one of ours."""
    try:
        entry = json.loads(line)
        _kind(entry).model_validate(entry)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise ValueError(f"no JSON: {str(error)[:80]}") from None
    return entry


def _kind(entry: Any) -> type[BaseModel]:
    if not isinstance(entry, dict):
        return _Wide
    if "finding" in entry:
        return _Finding
    if "scores" in entry:
        return _Evaluated
    return _Event if "event" in entry else _Compact if "columns" in entry else _Wide


def is_event(entry: Mapping[str, Any]) -> bool:
    """Whether a line tells an event, not a window or an evaluation."""
    return "event" in entry


def is_header(entry: Mapping[str, Any]) -> bool:
    """Whether a line names the domains of the compact lines behind it."""
    return is_event(entry) and entry.get("domains") is not None


class Lines:
    """The lines of a file in their order, each with its ``domains`` by name, however written."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def entry(self, line: bytes) -> dict[str, Any]:
        """The next line; a ValueError says in a few words why it is not one of ours."""
        entry = _parse(line)
        if "finding" in entry or "scores" in entry:  # of the files beside it
            raise ValueError(f"a line of {EVENTS_FILE} or {EVALUATIONS_FILE}")
        if is_header(entry):
            self._names = entry["domains"]
        return expand(entry, self._names) if "columns" in entry else entry


def metrics_path(path: str | Path) -> Path:
    """The metrics file, given itself or its folder."""
    path = Path(path)
    return path / METRICS_FILE if path.is_dir() else path


def stream_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """All lines of a metrics file that can be used, in order, one at a time; it may be growing.

    A torn *last* line (of a run that was killed, or writes at this moment) is left out without a
    word; how many others are, and why the first of them, is printed at the end.

    Args:
        path: the file, or the folder that holds it.

    Yields:
        Windows, evaluations and events (docs/metrics.md), always with ``domains`` by name.

    Raises:
        ConfigError: the file cannot be read, or none of its lines can be used.
    """
    lines = Lines()
    number, used, problems, problem = 0, 0, 0, ""
    try:
        path = metrics_path(path)
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    entry = lines.entry(line)
                except ValueError as error:
                    if line.endswith(b"\n"):
                        problems += 1
                        problem = problem or f"line {number}: {error}"
                    continue
                used += 1
                yield entry
    except (OSError, ValueError) as error:  # a name in a config may be none that a file has
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot read the metrics file {shorten(str(path))}: {reason}. "
            f"A run with --channel-loss writes {METRICS_FILE} into its --domain-log-dir."
        ) from error
    if problems and not used:
        raise ConfigError(f"{path} holds no line of {METRICS_FILE}; {problem}")
    if problems:
        notice(f"{path}: {problems} of {number} lines left out, {problem}")


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The windows and evaluations of a metrics file at once; see :func:`stream_lines`.

    A run of 1,000 domains may not fit into memory: stream it.
    """
    return [entry for entry in stream_lines(path) if not is_event(entry)]


def read_events(path: str | Path) -> list[Event]:
    """The events of a metrics file; see :func:`stream_lines`."""
    return [event_of(entry) for entry in stream_lines(path) if is_event(entry)]


def event_of(entry: Mapping[str, Any]) -> Event:
    """The event that a line tells."""
    return Event(entry["event"], entry["iteration"], entry["detail"])


def read_findings(path: str | Path) -> list[Finding]:
    """What the alarms of a run found, in order; each with its documents, where they are known.

    Args:
        path: ``domain_events.jsonl``, or the folder that holds it; a run that wrote none found
            nothing.
    """
    found: dict[tuple[Any, ...], Finding] = {}
    for entry in _entries(path, EVENTS_FILE):
        if "finding" in entry:
            one = finding_of(entry)
            # Told at once, and again with its documents.
            found[one.rule, one.domain, one.iteration, one.message] = one
    return list(found.values())


def read_evaluations(path: str | Path) -> list[Evaluated]:
    """What the probes of a run found, in order, and how far it was above its base.

    Args:
        path: ``domain_evaluations.jsonl``, or the folder that holds it; a run that wrote none had
            neither. Lines that tell different things of the same point are one.
    """
    found: list[Evaluated] = []
    for entry in _entries(path, EVALUATIONS_FILE):
        if "scores" in entry:
            one = Evaluated.load(_Evaluated.model_validate(entry).model_dump())
            found.append(_joined(found.pop(), one) if found and _same(found[-1], one) else one)
    return found


def _same(before: Evaluated, one: Evaluated) -> bool:
    """Whether two lines tell different things of one point of the run."""
    points = {(e.iteration, e.consumed_samples, e.final) for e in (before, one)}
    names = [{score.name for score in e.scores} for e in (before, one)]
    return len(points) == 1 and names[0].isdisjoint(names[1])


def _joined(before: Evaluated, one: Evaluated) -> Evaluated:
    return replace(one, scores=(*before.scores, *one.scores))


def _entries(path: str | Path, name: str) -> list[dict[str, Any]]:
    """The lines that can be used of a file, or of the one of that name in a folder, if any."""
    path = Path(path)
    path = path / name if path.is_dir() else path
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read {shorten(str(path))}: {error.strerror}") from error
    return [entry for entry in map(parse_line, lines) if entry is not None]


def finding_of(entry: Mapping[str, Any]) -> Finding:
    """The finding that a line of ``domain_events.jsonl`` tells."""
    told = _Finding.model_validate(entry)
    return Finding(rule=told.finding, **told.model_dump(exclude={"finding"}))


class MetricsTail:
    """What was added to a growing metrics file since one looked last.

    Args:
        folder: a run's ``--domain-log-dir``; folder and file may be yet to come.
    """

    def __init__(self, folder: Path) -> None:
        self._tail = Tail(folder / METRICS_FILE)
        self._lines = Lines()

    def read(self) -> list[dict[str, Any]]:
        """Windows and evaluations that are whole by now; all of them again after a resume."""
        if self._tail.replaced():
            self._lines = Lines()
        entries = []
        for line in self._tail.lines():
            try:
                entries.append(self._lines.entry(line))
            except ValueError:
                continue
        return [entry for entry in entries if not is_event(entry)]


def domain_names(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every domain that occurs, in order of first appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry["domains"]))
