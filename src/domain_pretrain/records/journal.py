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
    """Append what orders the samples from here on, unless the journal's last such line says it.

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
    if _last_order(path) != json.loads(json.dumps(order)):
        _append(path, line)


def tell_block(
    log_dir: Path,
    iteration: int,
    consumed_samples: int,
    number: int,
    shares: Mapping[str, float],
    counts: Mapping[str, int],
) -> None:
    """Append what a block of the stream has been decided to be.

    A run that resumes decides the blocks after its checkpoint again, and the same.

    Args:
        log_dir: its folder.
        iteration, consumed_samples: after which it was decided.
        number: of the block.
        shares: that were wanted, by domain.
        counts: samples by prefix.

    Raises:
        LogFolderError: it cannot be written.
    """
    told = {"block": number, "shares": shares, "counts": counts}
    _append(
        log_dir / JOURNAL_FILE,
        {"iteration": iteration, "consumed_samples": consumed_samples, **told},
    )


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        file = LinesFile(path)
    except OSError as error:
        raise LogFolderError(f"cannot write to {path}: {error.strerror}") from error
    file.append(line)
    file.close()


def _last_order(path: Path) -> Any:
    """That of the last whole line that has one; None where there is none."""
    found = None
    try:
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a crash of the machine
            if isinstance(entry, dict) and "order" in entry:
                found = entry["order"]
    except OSError:
        pass
    return found
