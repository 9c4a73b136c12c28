"""``domain_journal.jsonl``: what decides which training sample comes when, from each start on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from domain_pretrain.errors import ConfigError, LogFolderError
from domain_pretrain.process import notice
from domain_pretrain.records.writer import LinesFile

JOURNAL_FILE = "domain_journal.jsonl"

_Count = Annotated[int, Field(strict=True, ge=0, le=2**63)]


class Start(BaseModel):
    """A start of the run, as the journal tells it.

    Attributes:
        iteration: that it starts after.
        consumed_samples: that it skips.
        order: what decides the order of the samples, for a person and for a comparison.
        reads: what it takes to find the samples again; None in a journal of an older version.
    """

    iteration: _Count
    consumed_samples: _Count
    order: dict[str, Any]
    reads: dict[str, Any] | None = None


def note_start(
    log_dir: Path,
    iteration: int,
    consumed_samples: int,
    order: Mapping[str, Any],
    reads: Mapping[str, Any],
) -> None:
    """Append a start: what orders the samples from here on.

    Nothing is cut when a run resumes before an earlier start: a later line holds from its own
    iteration on, and overrides earlier lines from there.

    Args:
        log_dir: its folder.
        iteration, consumed_samples, order, reads: see :class:`Start`; JSON values.

    Raises:
        LogFolderError: it cannot be written.
    """
    path = log_dir / JOURNAL_FILE
    try:
        file = LinesFile(path)
    except OSError as error:
        raise LogFolderError(f"cannot write to {path}: {error.strerror}") from error
    file.append(
        {
            "iteration": iteration,
            "consumed_samples": consumed_samples,
            "order": order,
            "reads": reads,
        }
    )
    file.close()


def read_starts(log_dir: Path) -> list[Start]:
    """The starts of a run that still hold, in the order of their iterations.

    Lines that are no start are passed over; how many were torn is told.

    Raises:
        ConfigError: there is no journal, or no start in it.
    """
    path = log_dir / JOURNAL_FILE
    starts: list[Start] = []
    torn = 0
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}. A run with --channel-loss writes it beside its "
            "metrics file, from version 0.2 on"
        ) from error
    for line in lines:
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or "order" not in entry:
                continue
            start = Start.model_validate(entry)
        except (ValueError, ValidationError, RecursionError):
            torn += 1  # by a crash of the machine
            continue
        starts = [one for one in starts if one.iteration < start.iteration]
        starts.append(start)
    if not starts:
        raise ConfigError(f"{path} tells of no start of the run")
    if torn:
        notice(f"{path}: {torn} of {len(lines)} lines cannot be read and are left out")
    return starts
