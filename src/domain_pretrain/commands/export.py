"""``domain-pretrain export``: a run's model as a Hugging Face folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from domain_pretrain.checkpoints.whole import check_whole
from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.huggingface.exporting import export_model
from domain_pretrain.huggingface.families import Place
from domain_pretrain.huggingface.found import find_checkpoint

DTYPES = ("float32", "bfloat16", "float16")


def add_parser(subparsers: Any) -> None:
    """Add the ``export`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "export",
        description=(
            "Make a Hugging Face model of a run's checkpoint: weights, config, tokenizer and a "
            "card with its domains, tokens, losses and evaluation. Needs no GPU."
        ),
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="RUN_OR_CHECKPOINT",
        help="a run's folder, the one that --save named, or the folder of an iteration",
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to be made")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="the Hugging Face model that the run began with, or what was imported of it; by "
        "default the one that its --pretrained-checkpoint or --load names",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, help="of the weights (default: as the checkpoint has them)"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what came of it."""
    found = find_checkpoint(args.checkpoint)
    check_whole(found.folder)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    console = plain_console(stderr=True)

    def progress(places: Iterable[Place]) -> Iterable[Place]:
        return track(places, "exporting", console=console, disable=not console.is_terminal)

    done = export_model(found, args.out, args.base, dtype, progress)
    begun = "" if done.base is None else f", begun as {done.base.source}"
    print(f"exported: {args.out}, {done.family.architecture} of {found.folder}{begun}")
    if done.lora is not None:
        print(f"its adapters, of rank {done.lora.rank}, are merged into the weights")
    if done.base is None:
        print("the checkpoint names no base model; if it has one, export again with --base DIR")
    if done.tokenizer is None:
        print("it has no tokenizer: the run's is not here; --base DIR names the model that has it")
    return 0
