"""``domain-pretrain demo``: continued pretraining on four domains, from nothing to the picture."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.demo.layout import Layout, default_nproc
from domain_pretrain.demo.recipe import phases
from domain_pretrain.demo.story import Story
from domain_pretrain.errors import ConfigError, UnsupportedError

ITERATIONS = 1000
ABOUT = "ABOUT.txt"


def add_parser(subparsers: Any) -> None:
    """Add the ``demo`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "demo",
        description=(
            "Train a small base model on general text with Megatron, continue its pretraining on "
            "a blend of four domains, one of them dirty, and show every domain's loss."
        ),
    )
    layout = parser.add_argument_group("layout (data parallelism takes what is left)")
    layout.add_argument("--nproc", type=int, metavar="N", help="processes (what the layout needs)")
    for name, text in (
        ("tp", "tensor parallelism"),
        ("pp", "pipeline stages"),
        ("cp", "context parallelism"),
        ("vpp", "virtual stages per pipeline rank"),
    ):
        layout.add_argument(f"--{name}", type=int, default=1, metavar=name[0].upper(), help=text)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-run"),
        metavar="DIR",
        help="folder for everything it writes (%(default)s); an earlier demo's content is replaced",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        default=ITERATIONS,
        metavar="N",
        help="of continued pretraining (%(default)s); the base model takes three fifths as many",
    )
    parser.add_argument(
        "--script",
        type=Path,
        metavar="PATH",
        help="a checkout's pretrain_gpt.py to run instead of the built-in entry",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo; 0, or 130 where the user interrupts it.

    Raises:
        DomainPretrainError: what was asked for cannot run, or training failed.
    """
    layout = _layout(args)
    if args.iterations < 1:
        raise ConfigError(f"--iterations {args.iterations}: give at least 1")
    if find_spec("matplotlib") is None:  # not after minutes of training
        raise ConfigError("the demo draws with matplotlib: pip install 'domain-pretrain[demo]'")
    _choose_megatron(args.script)
    _claim(args.out)
    console = plain_console()
    try:
        Story(console, args.out, layout, *phases(args.iterations), args.script).tell()
    except KeyboardInterrupt:
        console.print(f"interrupted; what was written is in {args.out}")
        return 130
    return 0


def _layout(args: argparse.Namespace) -> Layout:
    import torch

    device: Literal["cuda", "cpu"] = "cuda" if torch.cuda.is_available() else "cpu"
    nproc = args.nproc
    if nproc is None:
        nproc = default_nproc(device, args.tp * args.pp * args.cp)
    return Layout(device, nproc, args.tp, args.pp, args.cp, args.vpp)


def _choose_megatron(script: Path | None) -> None:
    """Let this process write the corpora with the Megatron that will train on them."""
    if script is not None and not script.is_file():
        raise ConfigError(f"--script {script}: no such file")
    folders = [script and script.resolve().parent, os.environ.get("MEGATRON_LM_PATH")]
    sys.path[:0] = [str(folder) for folder in reversed(folders) if folder]
    if not _has_megatron():
        raise UnsupportedError(
            "the demo needs Megatron: pip install 'domain-pretrain[demo]' (Python >= 3.12), or "
            "name a Megatron-LM checkout: MEGATRON_LM_PATH=/path/to/Megatron-LM"
        )
    # Megatron's import probes CUDA; the first line of output already says what there is.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def _has_megatron() -> bool:
    try:
        return find_spec("megatron.core") is not None
    except ModuleNotFoundError:  # not even its parent
        return False


def _claim(out: Path) -> None:
    """Make ``out`` an empty folder of ours; refuse to touch what no demo wrote.

    Raises:
        ConfigError: it is a file, or a folder with other content.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: a file; name a folder")
    if out.is_dir() and any(out.iterdir()):
        if not (out / ABOUT).is_file():
            raise ConfigError(f"--out {out}: not empty, and no demo wrote it; name another folder")
        for entry in out.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / ABOUT).write_text("`domain-pretrain demo` wrote this folder and will replace it.\n")
