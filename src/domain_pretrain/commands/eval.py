"""``domain-pretrain eval``: what models know, beside each other."""

from __future__ import annotations

import argparse
import glob
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from domain_pretrain.commands.arguments import at_least_one
from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.demo.launch import run as run_logged
from domain_pretrain.errors import ConfigError
from domain_pretrain.huggingface.base import is_imported
from domain_pretrain.huggingface.identity import digest_of, read_files, recorded
from domain_pretrain.huggingface.importing import import_model
from domain_pretrain.launch.evaluate import (
    CONFIG,
    command_of,
    common_flags,
    config_of,
    context_of,
    write_config,
)
from domain_pretrain.launch.models import Checkpoint, find_models, known
from domain_pretrain.launch.preflight import inspect
from domain_pretrain.records.evaluated import EVALUATIONS_FILE, Evaluated
from domain_pretrain.records.reader import read_evaluations
from domain_pretrain.report.evaluations import as_json, print_evaluations
from domain_pretrain.whole_file import check_writable, whole_file
from domain_pretrain.whole_folder import check_free

LOG = "eval.log"
TAKES_WORDS = True  # behind --: Megatron's, as ``args.behind``


def add_parser(subparsers: Any) -> None:
    """Add the ``eval`` command to ``argparse``'s ``subparsers``; ``args.run`` runs it."""
    parser = subparsers.add_parser(
        "eval",
        usage="domain-pretrain eval WHERE [WHERE ...] --config FILE [--every-checkpoint] "
        "[--nproc N] [--script SCRIPT.py] [--out DIR] [--json FILE] [--dry-run] "
        "[-- <megatron flags>]",
        description=(
            "Ask models the probes of a config, one after the other, and put their scores beside "
            "each other: the last is compared with the first. The flags of each come from its "
            "checkpoint; those behind -- win over them, and go to all."
        ),
    )
    parser.add_argument(
        "places",
        nargs="+",
        type=Path,
        metavar="WHERE",
        help="folder that --save named, iter_… folder of it, a run's folder with checkpoints/, or "
        "a Hugging Face model, which is imported first",
    )
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        metavar="FILE",
        help="YAML with evaluate.probes; a run's --domain-config does, the rest is left aside",
    )
    parser.add_argument(
        "--every-checkpoint",
        action="store_true",
        help="of a folder with several checkpoints all, not only the latest",
    )
    add_run_flags(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    parser.set_defaults(run=run)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """How the models are run; :func:`evaluate` reads them."""
    parser.add_argument(
        "--nproc", type=at_least_one, default=1, help="processes, by torchrun (default 1)"
    )
    parser.add_argument(
        "--script", metavar="SCRIPT.py", help="that trained them (default: the built-in GPT)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep what each evaluation wrote there (default: a temporary folder)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check, and print the commands; run nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, and print the table."""

    def prepare(out: Path) -> Sequence[Checkpoint]:
        if args.json is not None:  # which may be in ``out``
            check_writable(args.json, "--json")
        write_config(args.config, out / CONFIG)
        return find_models(args.places, _import, every=args.every_checkpoint)

    console = plain_console()
    found = evaluate(args, prepare, console)
    if not found:
        return 0
    print_evaluations(console, found)
    if args.json is not None:
        text = json.dumps(as_json(found), ensure_ascii=False, indent=1, allow_nan=False)
        with whole_file(args.json) as file:
            # A path that is not UTF-8 has lone surrogates; \\udcXX is their JSON escape.
            file.write(f"{text}\n".encode(errors="backslashreplace"))
        print(f"table: {args.json}")
    return 0


def evaluate(
    args: argparse.Namespace, prepare: Callable[[Path], Sequence[Checkpoint]], console: Console
) -> list[tuple[str, Evaluated]]:
    """Evaluate models, one after the other.

    Args:
        args: those of :func:`add_run_flags`, and ``behind``.
        prepare: writes ``CONFIG`` into a folder, and says which models.
        console: for the progress.

    Returns:
        Each with its label; nothing where the commands are only printed.

    Raises:
        ConfigError: a model cannot be evaluated as is asked.
    """
    out = _folder(args.out)
    try:
        models = prepare(out)
        commands = _commands(args, models, out)
    except ConfigError:
        if args.out is None:
            shutil.rmtree(out, ignore_errors=True)
        raise
    found = []
    for at, (model, log_dir, command) in enumerate(commands, start=1):
        print(f"$ {shlex.join(command)}", flush=True)
        if not args.dry_run:
            what = Text(f"evaluating {model.label} ({at} of {len(commands)})")
            with console.status(what) if console.is_terminal else nullcontext():
                found.append((model.label, _evaluate(model, log_dir, command)))
    if args.dry_run:
        return []
    if args.out is None:
        shutil.rmtree(out, ignore_errors=True)
    else:
        print(f"logs and scores of each: {out}")
    return found


def _folder(out: Path | None) -> Path:
    if out is None:
        return Path(tempfile.mkdtemp(prefix="domain-pretrain-eval-"))
    check_free(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _commands(
    args: argparse.Namespace, models: Sequence[Checkpoint], out: Path
) -> list[tuple[Checkpoint, Path, list[str]]]:
    """Of each model; what is wrong with any is said before the first is run.

    Raises:
        ConfigError: of each model, what is wrong.
    """
    common = common_flags(models, args.behind)
    lengths = sorted(set(known(models, "seq_length")))
    if len(lengths) > 1:
        print(f"all at --seq-length {lengths[0]}, the shortest of theirs: {lengths}")
    elif not lengths and "--seq-length" not in args.behind:
        print(f"at --seq-length {context_of(models)}: none of them says what it was trained with")
    found, problems = [], []
    for at, model in enumerate(models, start=1):
        log_dir = out / f"{at:02d}-{model.folder.name}"
        command = command_of(
            model,
            log_dir,
            config_of(model, out / CONFIG, log_dir.with_suffix(".yaml")),
            common,
            args.behind,
            script=args.script,
            nproc=args.nproc,
        )
        words = command[command.index("domain_pretrain") + 1 :]
        problems += [f"{model.label}: {one}" for one in inspect(words, 1, args.nproc).problems]
        found.append((model, log_dir, command))
    if problems:
        raise ConfigError("\n  ".join(dict.fromkeys(["the flags do not fit:", *problems])))
    return found


def _evaluate(model: Checkpoint, log_dir: Path, command: list[str]) -> Evaluated:
    log_dir.mkdir(exist_ok=True)
    for _ in run_logged(command, os.environ, log_dir / LOG, f"the evaluation of {model.label}"):
        pass
    found = read_evaluations(log_dir)
    if not found:
        raise ConfigError(
            f"the evaluation of {model.label} wrote no {EVALUATIONS_FILE}: see {log_dir / LOG}"
        )
    return found[-1]


def _import(place: Path) -> Path:
    """The Hugging Face model as a checkpoint, made where it is not there already."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    models, name = home / "domain_pretrain" / "models", place.resolve().name
    before = (made for made in models.glob(f"{glob.escape(name)}-*") if is_imported(made))
    known = [read for made in before for read in (recorded(made) or {}).values()]
    files = dict(read_files(place, known))
    made = models / f"{name}-{digest_of(files)[:16]}"
    print(f"importing {place} into {made}", flush=True)
    import_model(place, made, known=files.values())
    return made
