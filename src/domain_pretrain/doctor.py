"""``domain-pretrain doctor``: is this machine, and this Megatron, fit for the plugin?"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from domain_pretrain import __version__
from domain_pretrain.errors import UnsupportedError
from domain_pretrain.hosts.megatron import SEAMS
from domain_pretrain.hosts.seams import check
from domain_pretrain.hosts.support import REFUSALS, REFUSED_WITH_WEIGHTS, check_version
from domain_pretrain.hosts.versions import HOST_VERSIONS, find, host_version

PACKAGES = ("torch", "megatron-core", "transformer-engine", "tensorboard", "wandb", "torch_npu")


def add_parser(subparsers: Any) -> None:
    """Add the command to ``domain-pretrain``'s parser."""
    parser = subparsers.add_parser("doctor", help="check versions, devices and seams")
    parser.add_argument(
        "--host",
        metavar="PATH",
        type=Path,
        help="a Megatron-LM checkout to check instead of the installed megatron; not imported",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 where a run would not be safe, else 0."""
    console = Console()
    if args.host is None:
        _print_machine(console)
    root = _find_host(args.host)
    if root is None:
        where = args.host or "this Python's path"
        console.print(f"[red]no megatron/training in {where}[/red]: nothing to hold on to")
        return 1
    safe = _print_host(console, root)
    _print_refusals(console)
    console.print("[green]fit[/green]" if safe else "[red]not fit: see above[/red]")
    return 0 if safe else 1


def _print_machine(console: Console) -> None:
    import torch

    table = Table("", "found", title="Machine", title_justify="left")
    table.add_row("Python", platform.python_version())
    table.add_row("domain-pretrain", __version__)
    for package in PACKAGES:
        table.add_row(package, _version(package) or "-")
    table.add_row("apex", _apex())
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        table.add_row("devices", ", ".join(names))
    else:
        table.add_row("devices", "no accelerator: the CPU backend, for demos and tests")
    console.print(table)


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
    """The ``megatron`` folder that holds ``training``, without importing it."""
    spec = PathFinder.find_spec("megatron", [str(checkout)] if checkout else sys.path)
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return next((Path(p) for p in locations if (Path(p) / "training").is_dir()), None)


def _print_host(console: Console, root: Path) -> bool:
    host = host_version(root)
    safe = True
    try:
        check_version(str(host), allow_unknown=False)
        verdict = f"within {HOST_VERSIONS}"
    except UnsupportedError as error:
        safe, verdict = False, f"[red]{error}[/red]"
    console.print(f"\nmegatron.core {host} at {root}: {verdict}")
    needs = find(host)
    if needs is not None:
        packages = ", ".join(needs.requirements)
        console.print(
            f"it needs Python {needs.python}; tested with {needs.tested_python}, {packages}"
        )
    table = Table("seam", "target", "fits", title="Seams", title_justify="left")
    for seam in SEAMS:
        problem = check(seam, root)
        safe = safe and problem is None
        table.add_row(seam.name, seam.target, problem or "yes")
    console.print(table)
    return safe


def _print_refusals(console: Console) -> None:
    table = Table("refused with channel loss", "because", title="Limits", title_justify="left")
    for refusal in REFUSALS + REFUSED_WITH_WEIGHTS:
        table.add_row(refusal.flags, refusal.why)
    console.print(table)
