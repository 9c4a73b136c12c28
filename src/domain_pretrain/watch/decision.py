"""What was decided where a loss jumped: a small file beside the checkpoints, read at every start.

The run that decides writes it and ends with :data:`EXIT_CODE`; the launcher looks there whether to
start it again, and every later start cuts what it says out of the stream.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from domain_pretrain.errors import ConfigError, LogFolderError, first_problem, shorten
from domain_pretrain.paths import is_remote
from domain_pretrain.records.record import Finding
from domain_pretrain.watch.section import Watching
from domain_pretrain.whole_file import whole_file

DECISIONS_FILE = "domain_decisions.json"
EXIT_CODE = 75  # of sysexits.h: a temporary failure, try again
SPIKE = "spike"

_Count = Annotated[int, Field(strict=True, ge=0, le=2**63)]


class Decision(BaseModel):
    """What a run does about a jump of a loss.

    Attributes:
        action: whether it goes back, or ends.
        iteration: at which the jump was found.
        onset: the last logged iteration before it.
        message: what was found.
        reason: why it ends although it was to go back; empty where it does what it was told to.
        resume: iteration of the checkpoint that it goes back to.
        samples: positions of the stream, the second one excluded, that are not read from there on.
        blocks: where the losses decide what lies there, what they had decided, from the checkpoint
            to the end of the samples: the number of a block → samples of every prefix in it, in
            the order of the training data.
    """

    model_config = ConfigDict(frozen=True)

    action: Literal["stop", "rollback"]
    iteration: _Count
    onset: _Count
    message: str
    reason: str = ""
    resume: _Count | None = None
    samples: tuple[_Count, _Count] | None = None
    blocks: dict[int, tuple[_Count, ...]] = {}

    @model_validator(mode="after")
    def _is_whole(self) -> Decision:
        if self.action == "rollback":
            if self.resume is None or self.samples is None:
                raise ValueError("a rollback needs resume and samples")
            if self.samples[0] >= self.samples[1]:
                raise ValueError("samples should be [first, stop] with first < stop")
        return self

    def __str__(self) -> str:
        """One sentence for a person."""
        if self.action == "stop":
            why = f"; no rollback: {self.reason}" if self.reason else ""
            return f"stopped at iteration {self.iteration:,}: {self.message}{why}"
        assert self.samples is not None
        first, stop = self.samples
        return (
            f"from iteration {self.iteration:,} back to {self.resume:,}, and samples {first:,} to "
            f"{stop:,} of the stream are left out: {self.message}"
        )


class Back(NamedTuple):
    """Where a run can go back to, and what it then leaves out; see :class:`Decision`."""

    resume: int
    samples: tuple[int, int]
    blocks: dict[int, tuple[int, ...]]


class _File(BaseModel):
    decisions: list[Decision]


def spike_of(found: Iterable[Finding]) -> Finding | None:
    """The jump up to act on: that which began first; None where there is none."""
    spikes = [
        one
        for one in found
        if one.rule == SPIKE
        and one.severity != "info"
        and one.evidence.get("direction", "up") == "up"
    ]
    return min(spikes, key=onset_of, default=None)


def onset_of(spike: Finding) -> int:
    """The last iteration that it says is good; at latest the one before it was found."""
    return min(int(spike.evidence.get("onset", spike.iteration)), spike.iteration - 1)


def decide(
    spike: Finding,
    watching: Watching,
    before: Sequence[Decision],
    *,
    onset: int,
    back: Back | str,
) -> Decision:
    """What to do about a jump.

    Args:
        spike: that was found.
        watching: of the config.
        before: what the run has decided so far.
        onset: the last good iteration, where its consumed samples are known.
        back: the way back; or why there is none.
    """
    most = watching.rollbacks
    made = sum(one.action == "rollback" for one in before)
    stop = Decision(action="stop", iteration=spike.iteration, onset=onset, message=spike.message)
    if watching.on_spike == "stop":
        return stop
    if made >= most:
        back = f"{made} of at most {most} were made (watch.rollbacks)"
    if isinstance(back, str):
        return stop.model_copy(update={"reason": back})
    return stop.model_copy(update={"action": "rollback", **back._asdict()})


def cuts_of(decisions: Iterable[Decision]) -> list[tuple[int, int]]:
    """Positions of the stream that rollbacks leave out."""
    return [one.samples for one in decisions if one.samples is not None]


def blocks_of(decisions: Iterable[Decision], begin: int) -> dict[int, tuple[int, ...]]:
    """What rollbacks say that blocks of the stream are.

    Args:
        decisions: of the run.
        begin: position from which on its present plan holds: blocks of those before are others.
    """
    found: dict[int, tuple[int, ...]] = {}
    for one in decisions:
        if one.samples is not None and one.samples[0] >= begin:
            found |= one.blocks
    return found


def ahead(decisions: Iterable[Decision], position: int) -> list[tuple[int, int]]:
    """Those samples left out that lie from a position of the stream on."""
    return [cut for cut in cuts_of(decisions) if cut[0] >= position]


def read_decisions(folder: str | Path) -> list[Decision]:
    """What was decided in a run so far; nothing where there is no file.

    Args:
        folder: of the run's checkpoints.

    Raises:
        ConfigError: the file cannot be read: which samples to leave out is not known.
    """
    path = Path(folder, DECISIONS_FILE)
    try:
        return _File.model_validate_json(path.read_bytes()).decisions
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        problem = error.strerror or str(error)
    except ValidationError as error:
        problem = first_problem(error)
    raise ConfigError(
        f"{path} says which samples the run leaves out, and cannot be used: {shorten(problem)}; "
        "mend it, or move it away to read those samples, too"
    )


def decisions_of(flags: Any) -> list[Decision]:
    """What the run has decided that a command resumes; nothing where it counts afresh.

    Args:
        flags: an object with the host's settings, under the names of Megatron-LM's flags.

    Raises:
        ConfigError: see :func:`read_decisions`.
    """
    load = getattr(flags, "load", None)
    afresh = getattr(flags, "finetune", False) or getattr(flags, "skip_train", False)
    return [] if load is None or afresh or is_remote(load) else read_decisions(load)


def add_decision(folder: str | Path, decision: Decision) -> None:
    """Append to the file, which is the one before or the one after, whenever the process dies.

    Raises:
        LogFolderError: it cannot be written.
    """
    path = Path(folder, DECISIONS_FILE)
    whole = _File(decisions=[*read_decisions(folder), decision])
    try:
        with whole_file(path) as file:
            file.write(whole.model_dump_json(indent=1, exclude_defaults=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise LogFolderError(f"cannot write {path}: {error.strerror}") from error
