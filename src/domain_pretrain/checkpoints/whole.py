"""Whether all of a checkpoint is there: a kill, a full disk or a crash leaves a part of one."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

from domain_pretrain.checkpoints.index import read_index
from domain_pretrain.errors import ConfigError


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
