"""``domain-pretrain import``: a Hugging Face model as a checkpoint to start from."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.progress import track

from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.huggingface.base import ENV
from domain_pretrain.huggingface.families import Place
from domain_pretrain.huggingface.importing import import_model


def add_parser(subparsers: Any) -> None:
    """Add the ``import`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "import",
        description=(
            "Make a checkpoint of a Hugging Face model (Llama, Mistral, Qwen2, Qwen3, Qwen3-MoE) "
            "that Megatron starts from in any layout, and write down its flags. Needs no GPU."
        ),
    )
    parser.add_argument(
        "source", type=Path, metavar="HF_DIR", help="folder with config.json and .safetensors"
    )
    parser.add_argument(
        "out", type=Path, metavar="OUT", help="folder to be made, for --pretrained-checkpoint"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert, and say what to do with it."""
    console = plain_console(stderr=True)

    def progress(places: Iterable[Place]) -> Iterable[Place]:
        return track(places, "importing", console=console, disable=not console.is_terminal)

    if import_model(args.source, args.out, progress):
        print(f"imported: {args.out}")
    else:
        print(f"{args.out} holds this model already")
    print(f"start from it with --pretrained-checkpoint {args.out}; its flags: {args.out / ENV}")
    return 0
