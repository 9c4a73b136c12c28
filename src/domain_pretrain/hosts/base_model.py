"""A run and the model that it starts from: what has to agree, and what is doubtful."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from domain_pretrain.adapt.recipes import RECIPES
from domain_pretrain.checkpoints.start import saved_at_start
from domain_pretrain.checkpoints.tracker import read_tracker
from domain_pretrain.data.vocabulary import padded, vocabulary
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.base import is_imported, read_base
from domain_pretrain.huggingface.check import check_run
from domain_pretrain.process import notice, rank


def check_model(args: Any) -> None:
    """Compare the run with the model that ``--pretrained-checkpoint`` or ``--load`` names.

    Args:
        args: Megatron's, validated. MindSpeed-LLM's has other flags for the same.

    Raises:
        ConfigError: names each flag that has to be another.
    """
    folder = getattr(args, "pretrained_checkpoint", None) or getattr(args, "load", None)
    if not folder or not is_imported(folder):
        return
    own = args.load and args.load != folder and read_tracker(Path(args.load)) is not None
    if getattr(args, "ckpt_format", "torch_dist") != "torch_dist" and not own:
        raise ConfigError(
            f"--ckpt-format {args.ckpt_format}: Megatron reads {folder} only with --ckpt-format "
            "torch_dist, the format that it has"
        )
    size = vocabulary(args)
    rows = None if size is None else padded(size, args)
    for text in check_run(vars(args), read_base(Path(folder)), rows):
        notice(f"{folder}: {text}")


def tell_doubts(args: Any) -> None:
    """What the recipes that apply find doubtful about the checkpoint that the run starts from.

    Args:
        args: Megatron's, validated.
    """
    recipes = [recipe for recipe in RECIPES if recipe.applies(args)]
    saved = saved_at_start(args) if recipes and rank() == 0 else None
    if saved is None:
        return
    for recipe in recipes:
        doubt = recipe.base(args, saved)
        if doubt is not None:
            notice(f"WARNING: {doubt}")
