"""Which checkpoint a run can resume from, where a crash or a full disk has left a broken one.

Megatron saves all files of ``iter_0000100``, then writes 100 into ``latest_checkpointed_iteration
.txt``, in place and without fsync. So a kill leaves an incomplete folder that nothing names, which
is harmless; a full disk can leave the tracker empty, and Megatron then ends *with exit code 0*;
and a crash of the machine can leave a tracker that names files that never reached the disk.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from domain_pretrain.checkpoints.index import read_index
from domain_pretrain.checkpoints.tracker import (
    RELEASE,
    TRACKER,
    checkpoints_of,
    iteration_of,
    read_tracker,
    write_tracker,
)
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


def check_whole(checkpoint: Path) -> None:
    """That all of ``iter_…`` is there, where it and no other is asked for; see :func:`find_damage`.

    Raises:
        ConfigError: something is missing or cut off.
    """
    if damage := find_damage(checkpoint):
        raise ConfigError(
            f"{checkpoint} is not good: {damage}; bring it back whole, or name another checkpoint"
        )


def find_damage(checkpoint: Path) -> str | None:
    """What is missing or cut off in ``iter_…``; None where all of it is there.

    Sizes are compared with what the checkpoint's own index says: it costs a few system calls per
    file, not reading them. Formats ``torch_dist`` and ``torch``; of others, only that files exist.

    Raises:
        ConfigError: the index names what no index needs: it may be made to run code.
    """
    if (checkpoint / ".metadata").exists() or (checkpoint / "metadata.json").exists():
        return next(_damage_of_distributed(checkpoint), None)
    parts = sorted(checkpoint.glob("mp_rank_*"))
    if parts:
        return next(_damage_of_torch(parts), None)
    return "it holds neither .metadata nor mp_rank folders"


def _damage_of_distributed(checkpoint: Path) -> Iterator[str]:
    """Of a torch_dist checkpoint. ``metadata.json`` is written last, after all ranks' files."""
    for name in (".metadata", "metadata.json"):
        if not (checkpoint / name).is_file():
            yield f"{name} is missing"
            return
    if not (checkpoint / "metadata.json").read_bytes().rstrip().endswith(b"}"):
        yield "metadata.json is cut off"
    try:
        needed = _sizes_of_index(checkpoint)
    except ConfigError:
        raise
    except Exception as error:  # a pickle of random bytes can fail as anything
        yield f".metadata cannot be read: {str(error)[:200]}"
        return
    for name, size in needed.items():
        path = checkpoint / name
        have = path.stat().st_size if path.is_file() else None
        if have is None:
            yield f"{name} is missing"
        elif have < size:
            yield f"{name} has {have:,} of {size:,} bytes"
    common = checkpoint / "common.pt"  # up to 0.18; later it is one of the entries
    if common.exists() and not zipfile.is_zipfile(common):
        yield "common.pt is cut off"


def _sizes_of_index(checkpoint: Path) -> dict[str, int]:
    """Bytes that each file of a checkpoint must have at least, by name."""
    needed: dict[str, int] = {}
    for blob in read_index(checkpoint).blobs():
        needed[blob.file] = max(blob.start + blob.length, needed.get(blob.file, 0))
    return needed


def _damage_of_torch(parts: list[Path]) -> Iterator[str]:
    """Of a checkpoint with a folder per TP and PP rank; a file of torch.save ends as a zip does."""
    names = {path.name for part in parts for path in part.glob("*.pt")}
    if not names:
        yield f"{parts[0].name} is empty"
    for part in parts:
        for name in sorted(names):
            path = part / name
            if not path.is_file():
                yield f"{part.name}/{name} is missing"
            elif not zipfile.is_zipfile(path):
                yield f"{part.name}/{name} is cut off"
