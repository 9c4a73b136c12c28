"""Which checkpoint a user means, and the run that it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from domain_pretrain.checkpoints.index import INDEX
from domain_pretrain.checkpoints.tracker import RELEASE, TRACKER, read_tracker
from domain_pretrain.errors import ConfigError
from domain_pretrain.json_file import read_json
from domain_pretrain.records.reader import METRICS_FILE


@dataclass(frozen=True)
class Found:
    """A checkpoint.

    Attributes:
        folder: of the iteration.
        parallel: whether its format is ``torch``, a file for each rank; else ``torch_dist``.
        run: the folder with the run's metrics; None where there is none nearby.
    """

    folder: Path
    parallel: bool
    run: Path | None


def find_checkpoint(given: Path) -> Found:
    """Of a run's folder, of one that ``--save`` named, or the folder of an iteration.

    Raises:
        ConfigError: there is no checkpoint, or its format is none that can be exported.
    """
    if not given.is_dir():
        raise ConfigError(f"{given} is no folder; give a run, its checkpoints or one of them")
    for folder in (given, given / "checkpoints"):
        if (said := read_tracker(folder)) is not None:
            digits = said.isdigit() and len(said) < 19
            named = folder / (f"iter_{int(said):07d}" if digits else said)
            if (said != RELEASE and not digits) or not named.is_dir():
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
        return Found(folder, False, run)
    if any(folder.glob("mp_rank_*/model_optim_rng.pt")):
        return Found(folder, True, run)
    if (folder / INDEX).is_file():
        raise ConfigError(
            f"{folder} has the format torch_dcp or fsdp_dtensor (Megatron-FSDP), whose weights lie "
            "there as the ranks had them; export needs a checkpoint "
            "that was saved with --ckpt-format torch_dist, or torch"
        )
    names = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
    raise ConfigError(
        f"{folder} is no checkpoint: it holds {names}. Give a run's folder, the folder that --save "
        f"named (with {TRACKER}), or one of an iteration (with metadata.json or mp_rank_*)"
    )
