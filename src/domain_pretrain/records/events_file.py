"""``domain_events.jsonl``: what happened to a run, and what its alarms found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from domain_pretrain.json_file import finite
from domain_pretrain.records.exporter import Exporter
from domain_pretrain.records.metrics_file import event_entry
from domain_pretrain.records.reader import EVENTS_FILE
from domain_pretrain.records.record import Event, Finding
from domain_pretrain.records.writer import LinesFile, check_log_dir


class EventsFile(Exporter):
    """Appends a line for each; one more for a finding whose documents are known later.

    Args:
        log_dir: the folder; made where it does not exist.
        after_iteration: where this run starts, as :meth:`LinesFile.open` takes it.

    Raises:
        LogFolderError: the folder cannot be used.
    """

    def __init__(self, log_dir: Path, after_iteration: int | None) -> None:
        check_log_dir(log_dir)
        self._file = LinesFile.open(log_dir / EVENTS_FILE, after_iteration)

    def finding(self, finding: Finding) -> None:
        """Append."""
        self._file.append(finding_entry(finding))

    def traced(self, finding: Finding) -> None:
        """Append once more, where there is something to add."""
        if finding.documents:
            self._file.append(finding_entry(finding))

    def event(self, event: Event) -> None:
        """Append, unless a start before this has told it of the same iteration."""
        self._file.append_once(event_entry(event))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def finding_entry(finding: Finding) -> dict[str, Any]:
    """The finding as one line of ``domain_events.jsonl`` (docs/alarms.md has the schema)."""
    return {
        "finding": finding.rule,
        "domain": finding.domain,
        "iteration": int(finding.iteration),
        **({"final": True} if finding.final else {}),
        "severity": finding.severity,
        "message": finding.message,
        "cause": finding.cause,
        "evidence": plain(finding.evidence),
        "documents": plain(finding.documents),
        "advice": finding.advice,
    }


def plain(value: Any) -> Any:
    """As JSON has it: no NaN, no infinity, and no numbers of numpy."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, int, str)):
        return value
    try:
        return finite(float(value))
    except (TypeError, ValueError):
        return str(value)
