"""Which checkpoint a user means, and the run that it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from domain_pretrain.checkpoints.index import INDEX
from domain_pretrain.checkpoints.ranks import rank_files
from domain_pretrain.checkpoints.tracker import TRACKER, folder_of, read_tracker
from domain_pretrain.errors import ConfigError
from domain_pretrain.json_file import read_json
from domain_pretrain.records.reader import METRICS_FILE


@dataclass(frozen=True)
class Found:
    """A checkpoint.

    Attributes:
        folder: of the iteration.
        run: the folder with the run's metrics; None where there is none nearby.
    """

    folder: Path
    run: Path | None


def find_checkpoint(given: Path) -> Found:
    """Of a run's folder, of one that ``--save`` named, or the folder of an iteration.

    Raises:
        ConfigError: there is no checkpoint, or its format is none that can be read here.
    """
    if not given.is_dir():
        raise ConfigError(f"{given} is no folder; give a run, its checkpoints or one of them")
    for folder in (given, given / "checkpoints"):
        if (said := read_tracker(folder)) is not None:
            named = folder_of(folder, said)
            if named is None or not named.is_dir():
                raise ConfigError(f"{folder / TRACKER} says {said[:80]!r}, which is not there")
            return _found(named)
    return _found(given)


def _found(folder: Path) -> Found:
    run = next((up for up in folder.absolute().parents[:2] if (up / METRICS_FILE).is_file()), None)
    if (folder / "metadata.json").is_file():
        backend = read_json(folder / "metadata.json")
        kind = backend.get("sharded_backend") if isinstance(backend, dict) else None
        if kind != "torch_dist":
            raise ConfigError(f"{folder} has the format {kind}; save it as torch_dist")
        return Found(folder, run)
    if rank_files(folder):
        return Found(folder, run)
    if (folder / INDEX).is_file():
        raise ConfigError(
            f"{folder} has the format torch_dcp or fsdp_dtensor (Megatron-FSDP), whose weights lie "
            "there as the ranks had them; give a checkpoint that was saved with --ckpt-format "
            "torch_dist, or torch"
        )
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise ConfigError(
        f"{folder} is no checkpoint: it holds {names}. Give a run's folder, the folder that --save "
        f"named (with {TRACKER}), or one of an iteration (with metadata.json or mp_rank_*)"
    )
