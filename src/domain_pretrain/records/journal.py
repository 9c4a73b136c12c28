"""``domain_journal.jsonl``: the decisions that change which training sample comes when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from domain_pretrain.errors import LogFolderError
from domain_pretrain.records.writer import LinesFile

JOURNAL_FILE = "domain_journal.jsonl"


def decide(log_dir: Path, iteration: int, consumed_samples: int, order: Mapping[str, Any]) -> None:
    """Append what orders the samples from here on, unless the journal's last line says the same.

    Nothing is cut when a run resumes before a decision: a later line holds from its own iteration
    on, and overrides earlier lines from there.

    Args:
        log_dir: its folder.
        iteration: that the run starts after.
        consumed_samples: that it skips.
        order: JSON values.

    Raises:
        LogFolderError: it cannot be written.
    """
    path = log_dir / JOURNAL_FILE
    line = {"iteration": iteration, "consumed_samples": consumed_samples, "order": order}
    if _last(path).get("order") == json.loads(json.dumps(order)):
        return
    try:
        file = LinesFile(path)
    except OSError as error:
        raise LogFolderError(f"cannot write to {path}: {error.strerror}") from error
    file.append(line)
    file.close()


def _last(path: Path) -> Mapping[str, Any]:
    """The last line that is whole; empty where there is none."""
    found: Mapping[str, Any] = {}
    try:
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a crash of the machine
            if isinstance(entry, dict):
                found = entry
    except OSError:
        pass
    return found
