"""``domain-pretrain doctor``: is this machine, and this Megatron, fit for the plugin?"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from domain_pretrain.adapt.recipes import RECIPES
from domain_pretrain.backends import select
from domain_pretrain.commands.terminal import plain_console
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.hosts import mindspeed
from domain_pretrain.hosts.experts import EXPERT_SEAMS
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.mindspeed_support import REFUSALS as MINDSPEED_REFUSALS
from domain_pretrain.hosts.support import EVERY_REFUSAL, check_version
from domain_pretrain.hosts.versions import HOST_VERSIONS, find, host_version
from domain_pretrain.seams.seam import check
from domain_pretrain.strategies.registry import described
from domain_pretrain.version import __version__

PACKAGES = ("torch", "megatron-core", "transformer-engine", "tensorboard", "wandb", "torch_npu")


def add_parser(subparsers: Any) -> None:
    """Add the command to ``domain-pretrain``'s parser."""
    parser = subparsers.add_parser("doctor")
    parser.add_argument(
        "--host",
        metavar="PATH",
        type=Path,
        help="a checkout of Megatron-LM or MindSpeed-LLM to check instead of the installed "
        "megatron; not imported",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 where a run would not be safe, else 0."""
    console = plain_console()
    fit = _print_machine(console) if args.host is None else True
    root = _find_host(args.host)
    if root is None:
        where = args.host or "this Python's path"
        missing = Text(f"no megatron/training in {where}:", "red")
        console.print(missing, "no Megatron found")
        return 1
    mindspeed_llm = next(iter(_find_package("mindspeed_llm", args.host)), None)
    safe = _print_host(console, root, mindspeed_llm) and fit
    if args.host is None and select() == "cpu":
        safe = _print_cpu(console, root) and safe
    _print_strategies(console)
    _print_recipes(console)
    _print_refusals(console, mindspeed_llm is not None)
    console.print(Text("fit", "green") if safe else Text("not fit: see above", "red"))
    return 0 if safe else 1


def _print_machine(console: Console) -> bool:
    import torch

    from domain_pretrain.backends import npu

    table = Table("", "found", title="Machine", title_justify="left")
    table.add_row("Python", platform.python_version())
    table.add_row("domain-pretrain", __version__)
    for package in PACKAGES:
        table.add_row(package, _version(package) or "-")
    table.add_row("apex", _apex())
    found = npu.find() if npu.present() else []
    if found:
        for finding in found:
            table.add_row(f"NPU: {finding.question}", finding.answer)
    elif torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        table.add_row("devices", ", ".join(names))
    else:
        table.add_row("devices", "no accelerator: the CPU backend, for demos and tests")
    console.print(table)
    return all(finding.fit for finding in found)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _apex() -> str:
    """NVIDIA apex carries amp_C; the PyPI project of the same name is something else."""
    if PathFinder.find_spec("apex") is None:
        return "-"
    if PathFinder.find_spec("amp_C") is not None:
        return _version("apex") or "found"
    return "not NVIDIA's (no amp_C): uninstall it, Megatron would import it"


def _find_host(checkout: Path | None) -> Path | None:
    """The ``megatron`` folder that holds ``training``, without importing it.

    A checkout of MindSpeed-LLM may hold a copy, or find one where it is told to.
    """
    found = _find_package("megatron", checkout)
    if checkout is not None and _find_package("mindspeed_llm", checkout):
        found += _find_package("megatron", os.environ.get("MEGATRON_LM_PATH"))
    return next((path for path in found if (path / "training").is_dir()), None)


def _find_package(name: str, folder: Path | str | None) -> list[Path]:
    """The folders of a package below ``folder`` or, by default, on this Python's path."""
    spec = PathFinder.find_spec(name, [str(folder)] if folder else sys.path)
    return [Path(p) for p in spec.submodule_search_locations or ()] if spec else []


def _print_host(console: Console, root: Path, mindspeed_llm: Path | None) -> bool:
    host = host_version(root)
    safe = True
    try:
        check_version(str(host), allow_unknown=False)
        verdict = Text(f"within {HOST_VERSIONS}")
    except UnsupportedError as error:
        safe, verdict = False, Text(str(error), "red")
    console.print(f"\nmegatron.core {host} at {root}:", verdict)
    needs = find(host)
    if needs is not None:
        packages = ", ".join(needs.requirements)
        console.print(
            f"it needs Python {needs.python}; tested with {needs.tested_python}, {packages}"
        )
    if mindspeed_llm is not None:
        console.print(f"MindSpeed-LLM at {mindspeed_llm}: MindSpeed's manager applies the seams")
    table = Table("seam", "target", "fits", title="Seams", title_justify="left")
    for name, target, problem in _seams(root, mindspeed_llm):
        safe = safe and problem is None
        table.add_row(name, target, problem or "yes")
    console.print(table)
    return safe


def _seams(root: Path, mindspeed_llm: Path | None) -> list[tuple[str, str, str | None]]:
    """Name, target, and why it does not fit, of every place where the plugin hooks in."""
    seams = SEAMS + EXPERT_SEAMS if mindspeed_llm is None else mindspeed.SEAMS
    rows = [(seam.name, seam.target, check(seam, root)) for seam in seams]
    if mindspeed_llm is None:
        return rows
    rows.append(("loop", mindspeed.LOOP, mindspeed.check_loop(mindspeed_llm)))
    problem: str | None = "no package mindspeed: install it, or name its checkout: MINDSPEED_PATH"
    for package in _find_package("mindspeed", os.environ.get("MINDSPEED_PATH")):
        problem = check(mindspeed.FEATURES, package)
    return [*rows, (mindspeed.FEATURES.name, mindspeed.FEATURES.target, problem)]


def _print_cpu(console: Console, root: Path) -> bool:
    """What the CPU backend replaces in the host and in PyTorch."""
    import torch

    from domain_pretrain.backends.cpu_seams import SEAMS as CPU_SEAMS

    roots = {"megatron": root, "torch": Path(torch.__file__).parent}
    table = Table("seam", "target", "fits", title="CPU backend", title_justify="left")
    problems = [check(seam, roots[seam.module.split(".")[0]]) for seam in CPU_SEAMS]
    for seam, problem in zip(CPU_SEAMS, problems, strict=True):
        table.add_row(seam.name, seam.target, problem or "yes")
    console.print(table)
    return not any(problems)


def _print_strategies(console: Console) -> None:
    """What each rule may move, and what a run must have for it."""
    table = Table("strategy", "steers", "needs", title="Strategies", title_justify="left")
    for row in described():
        table.add_row(row.name, " or ".join(row.steers), "; ".join(row.needs) or "-")
    console.print(table)


def _print_recipes(console: Console) -> None:
    """Ways to train that the host's flags turn on, and what this machine lacks for them."""
    table = Table("recipe", "for", "needs", "page", title="Recipes", title_justify="left")
    for one in RECIPES:
        needs = [f"megatron.core >= {one.since}"]
        needs += [f"{name} ({_version(name) or 'not installed'})" for name in one.packages]
        table.add_row(one.name, one.summary, "; ".join(needs), one.page)
    console.print(table)


def _print_refusals(console: Console, on_mindspeed: bool) -> None:
    table = Table("refused with channel loss", "because", title="Limits", title_justify="left")
    recipes = tuple(refusal for one in RECIPES for refusal in one.refusals)
    refusals = EVERY_REFUSAL + recipes + (MINDSPEED_REFUSALS if on_mindspeed else ())
    for refusal in refusals:
        table.add_row(refusal.flags, refusal.why)
    console.print(table)
