"""The checkpoint that a run must start from: Megatron trains from random weights without it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from domain_pretrain.checkpoints.start import checkpoint_at_start, folder_at_start, holds
from domain_pretrain.checkpoints.tracker import TRACKER
from domain_pretrain.errors import ConfigError
from domain_pretrain.process import rank

# Files of a Hugging Face checkpoint.
_HUGGING_FACE = ("*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")
MOST_NAMED = 5


def check_base(args: Any) -> None:
    """Refuse to continue the training of a model that is not there.

    A resumable run gives ``--load`` a folder that is empty at its first start. With ``--finetune``,
    or as ``--pretrained-checkpoint``, it must hold a checkpoint; always the one that is named.

    Args:
        args: Megatron's.

    Raises:
        ConfigError: names the flag, what lies there, and what to do.
    """
    if getattr(args, "enable_hf2mg_convert", False):
        return  # MindSpeed-LLM converts --load itself
    folder = folder_at_start(args)
    own = folder != getattr(args, "pretrained_checkpoint", None)
    flag = "--load" if own else "--pretrained-checkpoint"
    needed = folder is not None and (args.finetune or not own)
    if needed and not (holds(folder) or getattr(args, "ckpt_step", None)):
        raise ConfigError(
            f"{flag} {folder} holds no Megatron checkpoint to start from: {_found(Path(folder))}"
            + (" (without --finetune an empty --load starts a new run)" if own else "")
        )
    if rank() == 0:  # before it comes here, it mends the tracker
        checkpoint_at_start(args)


def _found(folder: Path) -> str:
    """What lies there instead, and what to do."""
    if not os.path.exists(folder):
        return f"the folder does not exist (current directory: {Path.cwd()})"
    if not folder.is_dir():
        return "it is a file; give the folder that holds " + TRACKER
    if any(any(folder.glob(pattern)) for pattern in _HUGGING_FACE):
        return (
            f"it is a Hugging Face checkpoint; convert it first, `domain-pretrain import {folder} "
            "OUT`, and give OUT (MindSpeed-LLM has convert_ckpt_v2.py for its own format)"
        )
    if folder.name.startswith("iter_") or any(
        (folder / name).exists() for name in (".metadata", "metadata.json", "mp_rank_00")
    ):
        return (
            f"it is the folder of one iteration; give the one above it, {folder.absolute().parent}"
            " (and --ckpt-step for another than the latest)"
        )
    names = sorted(path.name for path in folder.iterdir())
    if any(name.startswith("iter_") for name in names):
        return f"{TRACKER} is missing; write the iteration to start from into it"
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"it holds {', '.join(names[:MOST_NAMED])}{more}" if names else "the folder is empty"
