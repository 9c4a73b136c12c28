"""Which checkpoint a run can resume from, where a crash or a full disk has left a broken one.

Megatron saves all files of ``iter_0000100``, then writes 100 into ``latest_checkpointed_iteration
.txt``, in place and without fsync. So a kill leaves an incomplete folder that nothing names, which
is harmless; a full disk can leave the tracker empty, and Megatron then ends *with exit code 0*;
and a crash of the machine can leave a tracker that names files that never reached the disk.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.base import TRACKER, checkpoints_of, read_tracker, write_tracker

RELEASE = "release"  # a converted model, without an iteration
_ITERATION = re.compile(r"[0-9]{1,18}")


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
    limit = int(said) if said is not None and _ITERATION.fullmatch(said) else None
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
        needed = _sizes_of_index(checkpoint / ".metadata")
    except _ForeignNameError as error:
        raise ConfigError(
            f"{checkpoint / '.metadata'} names {str(error)[:100]}, which no checkpoint needs; to "
            "read it could run anything. Move the folder away to resume from an older checkpoint, "
            "and find out where this file comes from."
        ) from None
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


# What an index names, by module, from torch 2.1 to 2.14; Megatron leaves its ranks' plans there.
_INDEX_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed._shard.sharded_tensor.metadata": {"TensorProperties"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
    },
    "builtins": {"frozenset", "set"},
    "collections": {"OrderedDict", "defaultdict"},
    "pathlib": {"Path", "PosixPath", "PurePosixPath"},
    "pathlib._local": {"Path", "PosixPath", "PurePosixPath"},  # Python 3.13
}
_INDEX_ENUMS = {
    "torch.distributed.checkpoint.metadata": {"_MEM_FORMAT_ENCODING"},
    "torch.distributed._shard.sharded_tensor.metadata": {"MEM_FORMAT_ENCODING"},
    "torch.distributed.checkpoint.planner": {"WriteItemType"},
}
_DTYPE = re.compile(r"bool|bfloat16|(float|complex|q?u?int|bits)\d+\w*")
_HOSTS = ("megatron", "mindspeed", "mindspeed_llm")


def _sizes_of_index(path: Path) -> dict[str, int]:
    """Bytes that each file of a checkpoint must have at least, by name."""
    with open(path, "rb") as file:
        entries = _IndexReader(file).load().fields["storage_data"].values()
    needed: dict[str, int] = {}
    for entry in entries:
        name, end = entry.fields["relative_path"], entry.fields["offset"] + entry.fields["length"]
        needed[name] = max(end, needed.get(name, 0))
    return needed


class _IndexReader(pickle._Unpickler):
    """Reads a ``.metadata`` without importing or calling anything that it names.

    By pickle's unpickler in Python, which takes twice as long as the one in C: that one makes room
    for as many objects as the file says, and one damaged byte can say billions.

    A pickle can name any function and have it called. What an index holds is known, so whatever
    it names is replaced by a stand-in, and a name that no index needs is refused: Megatron, which
    reads the file later, would call it. Objects of the host's own are replaced too: Megatron must
    not be imported before the plugin is enabled, and may not be on the path yet.
    """

    def find_class(self, module: str, name: str) -> Any:
        if name in _INDEX_ENUMS.get(module, ()):
            return _EnumStandIn
        if name in _INDEX_CLASSES.get(module, ()) or module.partition(".")[0] in _HOSTS:
            return _StandIn
        if module == "torch" and _DTYPE.fullmatch(name):
            return _StandIn
        if (module, name) == ("builtins", "getattr"):
            return _member
        raise _ForeignNameError(f"{module}.{name}")


class _ForeignNameError(pickle.UnpicklingError):
    """An index names what none of PyTorch's or Megatron's does."""


class _StandIn:
    """Takes whatever a pickle does to an object; keeps its fields."""

    def __new__(cls, *args: Any) -> _StandIn:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        self.fields: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.fields = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class _EnumStandIn(_StandIn): ...


def _member(of: Any, name: Any) -> Any:
    """``getattr``, by which Python 3.11 names an enum's member."""
    if of is not _EnumStandIn:
        raise _ForeignNameError("builtins.getattr")
    return _EnumStandIn()


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
