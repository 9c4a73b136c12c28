"""The arguments that a run saved with its checkpoint."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from domain_pretrain.checkpoints.index import INDEX, read_index
from domain_pretrain.checkpoints.pickles import Reader, StandIn
from domain_pretrain.checkpoints.ranks import rank_files
from domain_pretrain.errors import ConfigError

# Since core 0.19 an entry of the checkpoint, before that a file: dist_checkpointing/serialization
# .py, load_common_state_dict.
_COMMON = ("common.pt", "common_state/shard_0_1")


@dataclass(frozen=True)
class Saved:
    """What a checkpoint says of its run.

    Attributes:
        args: Megatron's, by name; what is no plain value is a stand-in.
        iteration: of the checkpoint.
    """

    args: dict[str, Any]
    iteration: int


def read_saved(checkpoint: Path) -> Saved:
    """Of one iteration's folder, of the formats ``torch_dist`` and ``torch``.

    Raises:
        ConfigError: there is none of it, or it cannot be read.
    """
    try:
        with _open(checkpoint) as file:
            common = read_plain(file)
    except ConfigError:
        raise
    except Exception as error:  # a pickle of random bytes can fail as anything
        raise ConfigError(
            f"{checkpoint} does not say what model it holds: its arguments cannot be read "
            f"({str(error)[:200]})"
        ) from None
    if isinstance(common, list):  # objects of all ranks; they are the same
        common = common[0]
    args = common.get("args") if isinstance(common, dict) else None
    if not isinstance(args, StandIn) or not args.fields:
        raise ConfigError(f"{checkpoint} does not say what model it holds: it has no arguments")
    return Saved(args.fields, int(common.get("iteration") or 0))


def _open(checkpoint: Path) -> BinaryIO:
    file, entry = _COMMON
    if (checkpoint / file).is_file():
        return open(checkpoint / file, "rb")
    if (checkpoint / INDEX).is_file():
        blob = read_index(checkpoint).objects[entry]
        with open(checkpoint / blob.file, "rb") as whole:
            whole.seek(blob.start)
            return io.BytesIO(whole.read(blob.length))
    parts = rank_files(checkpoint)
    if not parts:
        raise ConfigError(f"{checkpoint} holds no checkpoint of the formats torch_dist and torch")
    return open(parts[0], "rb")


def read_plain(file: BinaryIO) -> Any:
    """What ``torch.save`` wrote, without its tensors: a :class:`StandIn` for all but plain data."""
    with zipfile.ZipFile(file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        with archive.open(name) as pickled:
            return Reader(pickled).load()
