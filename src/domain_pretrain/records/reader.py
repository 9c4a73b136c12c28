"""``domain_metrics.jsonl`` as it is read: one JSON object per line, the last one possibly torn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from domain_pretrain.errors import ConfigError, shorten
from domain_pretrain.process import notice
from domain_pretrain.records.record import Event
from domain_pretrain.stats import Split

METRICS_FILE = "domain_metrics.jsonl"

# No sum of a run comes near it; what is larger would overflow in a reader's own sums.
_LARGEST = 1e30
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-_LARGEST, le=_LARGEST)]

_Iteration = Annotated[int, Field(strict=True, ge=0, le=2**63)]


class _Domain(BaseModel):
    """What every reader needs of a domain; docs/metrics.md has all keys."""

    loss: _Number | None
    loss_sum: _Number
    tokens: Annotated[_Number, Field(ge=0)]


class _Line(BaseModel):
    iteration: _Iteration
    split: Split
    domains: dict[str, _Domain]


class _Event(BaseModel):
    event: str
    iteration: _Iteration
    detail: str


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One line of the file (docs/metrics.md has the schema); None where it is torn or foreign."""
    try:
        return _parse(line)
    except ValueError:
        return None


def _parse(line: bytes) -> dict[str, Any]:
    """The line as it is; a ValueError says in a few words why it is not one of ours."""
    try:
        entry = json.loads(line)
        (_Event if is_event(entry) else _Line).model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        what = first["msg"].partition(" or instance of")[0]  # of a class of this file
        raise ValueError(f"{where}: {what}" if where else what) from None
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise ValueError(f"no JSON: {str(error)[:80]}") from None
    return entry


def is_event(entry: Any) -> bool:
    """Whether a line tells an event, not a window or an evaluation."""
    return isinstance(entry, dict) and "event" in entry


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The windows and evaluations of a metrics file, in order; the file may still be growing.

    Args:
        path: the file, or the folder that holds it.

    Returns:
        Their lines. A torn *last* line (of a run that was killed, or writes at this moment) is left
        out without a word; how many others are, and why the first of them, is printed.

    Raises:
        ConfigError: the file cannot be read, or none of its lines can be used.
    """
    return [entry for entry in _read(Path(path)) if not is_event(entry)]


def read_events(path: str | Path) -> list[Event]:
    """The events of a metrics file, as :func:`read_metrics` reads its other lines."""
    events = (entry for entry in _read(Path(path)) if is_event(entry))
    return [Event(entry["event"], entry["iteration"], entry["detail"]) for entry in events]


def _read(path: Path) -> list[dict[str, Any]]:
    """All lines that can be used."""
    try:
        if path.is_dir():
            path = path / METRICS_FILE
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # a name in a config may be none that a file has
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"cannot read the metrics file {shorten(str(path))}: {reason}. "
            f"A run with --channel-loss writes {METRICS_FILE} into its --domain-log-dir."
        ) from error
    lines = content.splitlines()
    entries, problems = [], []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_parse(line))
        except ValueError as error:
            if number < len(lines) or content.endswith(b"\n"):
                problems.append(f"line {number}: {error}")
    if problems and not entries:
        raise ConfigError(f"{path} holds no line of {METRICS_FILE}; {problems[0]}")
    if problems:
        notice(f"{path}: {len(problems)} of {len(lines)} lines left out, {problems[0]}")
    return entries


class MetricsTail:
    """What was added to a growing metrics file since one looked last.

    Args:
        folder: a run's ``--domain-log-dir``; folder and file may be yet to come.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / METRICS_FILE
        self._read = 0

    def read(self) -> list[dict[str, Any]]:
        """Windows and evaluations that are whole by now; a torn last line waits for its end."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        entries = (parse_line(line) for line in whole.splitlines())
        return [entry for entry in entries if entry is not None and not is_event(entry)]


def domain_names(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every domain that occurs, in order of first appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry["domains"]))
