"""From which weights a run is going to start, as Megatron decides it."""

from __future__ import annotations

from pathlib import Path

from domain_pretrain.checkpoints.start import checkpoint_at_start, folder_at_start
from domain_pretrain.checkpoints.tracker import RELEASE
from domain_pretrain.checkpoints.whole import check_whole
from domain_pretrain.errors import ConfigError
from domain_pretrain.flags import plugin_args
from domain_pretrain.hosts.base import check_base
from domain_pretrain.launch.checkpoints import find_resume
from domain_pretrain.launch.flags import Flags
from domain_pretrain.paths import is_remote

RANDOM = "random weights"


def find_start(flags: Flags) -> tuple[str, list[str]]:
    """Say where the run begins, and what is worth a warning about that.

    ``--load`` counts as soon as it holds a checkpoint, until then ``--pretrained-checkpoint``.

    Raises:
        ConfigError: there is no such checkpoint, or none that is good; see
            :func:`~domain_pretrain.launch.checkpoints.find_resume` and
            :func:`~domain_pretrain.hosts.base.check_base`.
    """
    if flags.enable_hf2mg_convert and flags.load is not None:
        return f"{flags.load}, converted by MindSpeed-LLM", []
    warnings: list[str] = []
    if flags.load is not None and not is_remote(flags.load) and not flags.ckpt_step:
        resume = find_resume(flags.load)
        warnings += resume.broken
        if resume.tracker is not None:
            later = "the launch scripts make its tracker say so before they start"
            return _words(flags, flags.load, f"{resume.tracker} ({later})"), warnings
    named = _named(flags)
    try:
        check_base(flags)
    except ConfigError as error:
        # Without channel loss nothing looks, and Megatron trains. Not from what does not exist.
        if plugin_args(flags).channel_loss or folder_at_start(flags) == flags.pretrained_checkpoint:
            raise
        return RANDOM, [*warnings, f"Megatron would start from random weights: {error}"]
    return named, warnings


def _named(flags: Flags) -> str:
    folder = folder_at_start(flags)
    if folder is None:
        return RANDOM
    if is_remote(folder):
        return f"what {folder} names (an object store: not looked into)"
    checkpoint = checkpoint_at_start(flags)
    if checkpoint is None:
        return f"{RANDOM}: {folder} holds no checkpoint yet"
    if checkpoint.name == RELEASE:
        return f"the released weights of {folder}"
    check_whole(checkpoint)
    return _words(flags, folder, str(int(checkpoint.name.removeprefix("iter_"))))


def _words(flags: Flags, folder: Path, iteration: str) -> str:
    text = f"iteration {iteration} of {folder}"
    fresh = flags.finetune or folder != flags.load
    return f"the weights of {text}; counts from 0" if fresh else text
