"""``domain_journal.jsonl``: what decides which training sample comes when, from each start on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from domain_pretrain.errors import ConfigError, LogFolderError
from domain_pretrain.process import notice
from domain_pretrain.records.writer import LinesFile

JOURNAL_FILE = "domain_journal.jsonl"

_Count = Annotated[int, Field(strict=True, ge=0, le=2**63)]


class Block(BaseModel):
    """A decided block of the stream; see :func:`tell_block`."""

    block: _Count
    starts: dict[str, int]
    counts: dict[str, _Count]


class Start(BaseModel):
    """A start of the run, as the journal tells it.

    Attributes:
        iteration: that it starts after.
        consumed_samples: that it skips.
        order: what decides the order of the samples, for a person and for a comparison.
        reads: what it takes to find the samples again; None in a journal of an older version.
        blocks: where the stream is decided on the way, its blocks by number, as this start has
            them: those that its checkpoint held, and what was decided from there on. Not those of
            starts before it: they may be of another plan, or call the prefixes otherwise.
    """

    iteration: _Count
    consumed_samples: _Count
    order: dict[str, Any]
    reads: dict[str, Any] | None = None
    blocks: dict[int, Block] = Field(default={}, exclude=True)

    @field_validator("blocks", mode="before")
    @classmethod
    def _by_number(cls, told: Any) -> Any:
        """The journal has them in a row."""
        if not isinstance(told, list):
            return told
        blocks = map(Block.model_validate, told)
        return {one.block: one for one in blocks}


def note_start(
    log_dir: Path,
    iteration: int,
    consumed_samples: int,
    order: Mapping[str, Any],
    reads: Mapping[str, Any],
    blocks: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Append a start: what orders the samples from here on.

    Nothing is cut when a run resumes before an earlier start: a later line holds from its own
    iteration on, and overrides earlier lines from there.

    Args:
        log_dir: its folder.
        iteration, consumed_samples, order, reads: see :class:`Start`; JSON values.
        blocks: that its checkpoint held, as the fields of :class:`Block`.

    Raises:
        LogFolderError: it cannot be written.
    """
    line = {"iteration": iteration, "consumed_samples": consumed_samples}
    held = {"blocks": list(blocks)} if blocks else {}
    _append(log_dir / JOURNAL_FILE, {**line, "order": order, "reads": reads, **held})


def note_decision(
    log_dir: Path, iteration: int, consumed_samples: int, decision: Mapping[str, Any]
) -> None:
    """Append what is done about a jump of a loss.

    Args:
        log_dir: its folder.
        iteration, consumed_samples: after which it was decided.
        decision: JSON values; see :class:`domain_pretrain.watch.decision.Decision`.

    Raises:
        LogFolderError: it cannot be written.
    """
    line = {"iteration": iteration, "consumed_samples": consumed_samples}
    _append(log_dir / JOURNAL_FILE, {**line, "decision": decision})


def tell_block(
    log_dir: Path,
    iteration: int,
    consumed_samples: int,
    shares: Mapping[str, float],
    *,
    block: int,
    starts: Mapping[str, int],
    counts: Mapping[str, int],
) -> None:
    """Append what a block of the stream has been decided to be.

    A run that resumes decides the blocks after its checkpoint again, and the same.

    Args:
        log_dir: its folder.
        iteration, consumed_samples: after which it was decided.
        shares: that were wanted, by domain.
        block: its number.
        starts: samples of each prefix in the blocks before it; where the run has begun to read
            another plan within it, so many that the rest of it goes on from there.
        counts: samples of each prefix in it.

    Raises:
        LogFolderError: it cannot be written.
    """
    line = {"iteration": iteration, "consumed_samples": consumed_samples}
    told = {"block": block, "shares": shares, "starts": starts, "counts": counts}
    _append(log_dir / JOURNAL_FILE, {**line, **told})


def _append(path: Path, line: dict[str, Any]) -> None:
    try:
        file = LinesFile(path)
    except OSError as error:
        raise LogFolderError(f"cannot write to {path}: {error.strerror}") from error
    file.append(line)
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
    lines = _lines(path)
    for line in lines:
        try:
            entry = json.loads(line)
            if isinstance(entry, dict) and "block" in entry and starts:
                block = Block.model_validate(entry)
                starts[-1].blocks[block.block] = block  # in place of one that was decided before
            if not isinstance(entry, dict) or "order" not in entry:
                continue
            start = Start.model_validate(entry)
        except (ValueError, ValidationError, RecursionError):
            torn += 1  # by a crash of the machine
            continue
        starts = [*(one for one in starts if one.iteration < start.iteration), start]
    if not starts:
        raise ConfigError(f"{path} tells of no start of the run")
    if torn:
        notice(f"{path}: {torn} of {len(lines)} lines cannot be read and are left out")
    return starts


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}. A run with --channel-loss writes it beside its "
            "metrics file, from version 0.2 on"
        ) from error
