"""Which checkpoint a run can resume from, where a crash or a full disk has left a broken one.

Megatron saves all files of ``iter_0000100``, then writes 100 into ``latest_checkpointed_iteration
.txt``, in place and without fsync. So a kill leaves an incomplete folder that nothing names, which
is harmless; a full disk can leave the tracker empty, and Megatron then ends *with exit code 0*;
and a crash of the machine can leave a tracker that names files that never reached the disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from domain_pretrain.checkpoints.tracker import (
    RELEASE,
    TRACKER,
    checkpoints_of,
    iteration_of,
    read_tracker,
    write_tracker,
)
from domain_pretrain.checkpoints.whole import find_damage
from domain_pretrain.errors import ConfigError


@dataclass(frozen=True)
class Resume:
    """Where a run is going to start.

    Attributes:
        iteration: of the newest good checkpoint; None where there is none to resume from.
        broken: why newer ones are not good, one sentence each.
        tracker: what the tracker must say so that Megatron loads it; None: it already does.
    """

    iteration: int | None
    broken: tuple[str, ...] = ()
    tracker: str | None = None


def find_resume(folder: Path) -> Resume:
    """The newest good checkpoint of ``folder``; reads only.

    The tracker is right if what it names is good: a user who has set it back, for example to skip
    a spike, keeps that. Otherwise it is the newest good one up to what it names.

    Args:
        folder: as ``--load`` takes it; need not exist. An object store is not inspected.

    Raises:
        ConfigError: the tracker says that there were checkpoints, and none is good: starting
            over is not for a machine to decide. Or see :func:`find_damage`.
    """
    tracker = folder / TRACKER
    said = read_tracker(folder)
    if said == RELEASE:
        return Resume(None)
    limit = iteration_of(said)
    broken = [f"{tracker} is torn: {said[:80]!r}"] if said is not None and limit is None else []
    for iteration, checkpoint in sorted(checkpoints_of(folder).items(), reverse=True):
        if limit is not None and iteration > limit:
            continue
        problem = find_damage(checkpoint)
        if problem is None:
            right = limit == iteration
            return Resume(iteration, tuple(broken), None if right else str(iteration))
        broken.append(f"{checkpoint} is not good: {problem}")
    if said is None:
        return Resume(None, tuple(broken))
    raise ConfigError(
        "\n  ".join([f"no checkpoint in {folder} can be resumed from:", *broken])
        + f"\n  {tracker} names one: bring it back, or move the folder away to start over"
    )


def repair_tracker(folder: Path) -> Resume:
    """Let the tracker name the newest good checkpoint, atomically; see :func:`find_resume`.

    One process calls it, while none trains.
    """
    resume = find_resume(folder)
    if resume.tracker is not None:
        write_tracker(folder, int(resume.tracker))
    return resume
