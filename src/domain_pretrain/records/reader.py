"""``domain_metrics.jsonl`` as it is read: one JSON object per line, the last one possibly torn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.stats import SPLITS

METRICS_FILE = "domain_metrics.jsonl"


def parse_line(line: bytes) -> dict[str, Any] | None:
    """One line of the file (docs/metrics.md has the schema); None where it is torn or foreign."""
    try:
        entry = json.loads(line)
    except ValueError:  # also what is not UTF-8
        return None
    whole = (
        isinstance(entry, dict)
        and type(entry.get("iteration")) is int
        and entry.get("split") in SPLITS
        and isinstance(entry.get("domains"), dict)
    )
    return entry if whole else None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """All lines of a metrics file, in order; the file may still be growing.

    Args:
        path: the file, or the folder that holds it.

    Returns:
        The lines. A torn *last* line (a run that was killed, or writes at this moment) is left out.

    Raises:
        ConfigError: the file cannot be read, or a line before the last is not one of ours.
    """
    path = Path(path)
    if path.is_dir():
        path = path / METRICS_FILE
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read the metrics file {path}: {error.strerror}. "
            f"A run with --channel-loss writes {METRICS_FILE} into its --domain-log-dir."
        ) from error
    entries = []
    for number, line in enumerate(lines, start=1):
        entry = parse_line(line)
        if entry is not None:
            entries.append(entry)
        elif number < len(lines):
            raise ConfigError(
                f"{path}, line {number}: not a line of {METRICS_FILE}: {line[:80]!r}. "
                "Remove the line, or let a resumed run set it aside."
            )
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
        """The lines that are whole by now, in order; a torn last one waits for its end."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                added = file.read()
        except FileNotFoundError:
            return []
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        entries = (parse_line(line) for line in whole.splitlines())
        return [entry for entry in entries if entry is not None]


def domain_names(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every domain that occurs, in order of first appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry["domains"]))
