"""``domain-pretrain demo``: continued pretraining on four domains, from nothing to the picture."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from domain_pretrain.data.demo import Corpus, build
from domain_pretrain.demo import launch
from domain_pretrain.demo.layout import Layout, cores, default_nproc
from domain_pretrain.demo.recipe import Phase, phases
from domain_pretrain.errors import ConfigError
from domain_pretrain.report.metrics import METRICS_FILE, read_metrics
from domain_pretrain.report.picture import loss_picture
from domain_pretrain.report.report_command import CORPUS_TOKENS_FILE
from domain_pretrain.report.table import loss_table, summarise

ITERATIONS = 1000
ABOUT = "ABOUT.txt"


def add_parser(subparsers: Any) -> None:
    """Add the ``demo`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "demo",
        help="continued pretraining on four small domains, from nothing to the picture",
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
        ("vpp", "virtual stages a pipeline rank"),
    ):
        layout.add_argument(f"--{name}", type=int, default=1, metavar=name[0].upper(), help=text)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo-run"),
        metavar="DIR",
        help="folder for all that it writes (%(default)s); an earlier demo's content is replaced",
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
    """Run the demo; returns 0.

    Raises:
        DomainPretrainError: what was asked for cannot run, or training failed.
    """
    console = Console(highlight=False)
    started = time.monotonic()
    layout = _layout(args)
    if args.iterations < 1:
        raise ConfigError(f"--iterations {args.iterations}: give at least 1")
    _choose_megatron(args.script)
    out: Path = args.out
    _claim(out)

    console.print(f"[bold]device[/]    {_device(layout)}; {layout}")
    corpora = _build(console, out / "corpora")
    base, continued = phases(args.iterations)
    _train(console, base, out, layout, corpora, args.script)
    checkpoint = ["--load", str(out / base.name / "checkpoint"), "--finetune"]
    _train(console, continued, out, layout, corpora, args.script, *checkpoint)

    _show(console, out, base, continued)
    console.print(f"[bold]done[/]      in {_minutes(time.monotonic() - started)}")
    return 0


def _layout(args: argparse.Namespace) -> Layout:
    import torch

    device: Literal["cuda", "cpu"] = "cuda" if torch.cuda.is_available() else "cpu"
    nproc = args.nproc
    if nproc is None:
        nproc = default_nproc(device, args.tp * args.pp * args.cp)
    return Layout(device, nproc, args.tp, args.pp, args.cp, args.vpp)


def _device(layout: Layout) -> str:
    if layout.device == "cuda":
        import torch

        return (
            f"GPU: {torch.cuda.get_device_name()} ({layout.nproc} of {torch.cuda.device_count()})"
        )
    return f"CPU (no GPU found): {cores()} cores, {platform.machine()}"


def _choose_megatron(script: Path | None) -> None:
    """Let this process write the corpora with the Megatron that will train on them."""
    if script is not None and not script.is_file():
        raise ConfigError(f"--script {script}: no such file")
    folders = [script and script.resolve().parent, os.environ.get("MEGATRON_LM_PATH")]
    sys.path[:0] = [str(folder) for folder in reversed(folders) if folder]
    # Megatron's import probes CUDA; the first line of output says already what there is.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


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


def _build(console: Console, folder: Path) -> dict[str, Corpus]:
    with console.status("corpora: from the standard library of this Python …"):
        corpora = build(folder)
    sizes = ", ".join(f"{name} {c.manifest.tokens / 1e6:.2f}M" for name, c in corpora.items())
    console.print(f"[bold]corpora[/]   {sizes} tokens (bytes)")
    return corpora


def _train(
    console: Console,
    phase: Phase,
    out: Path,
    layout: Layout,
    corpora: Mapping[str, Corpus],
    script: Path | None,
    *flags: str,
) -> None:
    folder = out / phase.name
    folder.mkdir()
    phase.write_config(folder, corpora)
    tokenizer = corpora["general"].manifest.megatron_flags
    words = [str(script)] if script else []
    words += [*phase.flags(folder, layout.tp), *layout.flags(), *tokenizer, *flags]
    environment = {"OMP_NUM_THREADS": str(layout.threads), **os.environ}
    with launch.PhaseProgress(console, phase.name, phase.iterations) as progress:
        command = launch.torchrun(layout.nproc, words)
        for line in launch.run(command, environment, folder / "train.log"):
            progress.read(line)


def _show(console: Console, out: Path, *done: Phase) -> None:
    """The tables, the picture, and where to look further."""
    for phase in done:
        folder = out / phase.name
        summaries = summarise(
            read_metrics(folder), json.loads((folder / CORPUS_TOKENS_FILE).read_text("utf-8"))
        )
        console.print()
        console.print(loss_table(summaries, title=phase.title))
    picture = out / "losses.png"
    loss_picture(
        None,
        picture,
        title="Channel loss of four domains, one of them dirty",
        phases=[(phase.title, out / phase.name / METRICS_FILE) for phase in done],
    )
    tensorboard = Path(sys.executable).with_name("tensorboard")
    program = _short(tensorboard) if tensorboard.exists() else "tensorboard"
    console.print(
        "\ndirty is scrambled text, where no model gets below ln 128 = 4.85 nats a byte. A loss "
        "that stays high while the others fall is what channel loss is there to show.\n"
    )
    for name, text in (
        ("picture", _short(picture)),
        ("charts", f"{program} --logdir {_short(out / 'tensorboard')}"),
        ("logs", " ".join(_short(out / phase.name / "train.log") for phase in done)),
    ):
        console.print(f"[bold]{name:<9}[/] {text}", soft_wrap=True)


def _short(path: Path) -> str:
    """Relative to the current folder where it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
