"""A folder that looks like a clone in which the package is installed, and a shell in it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from support.launch import environment
from support.pages import ROOT


def write_command(path: Path, body: str) -> None:
    """An executable bash script."""
    path.write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{body}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def make_clone(folder: Path) -> Path:
    """Its commands are on ``bin``."""
    (folder / "bin").mkdir(parents=True)
    for name in ("docs", "src", "scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    for name, words in {
        "domain-pretrain": "-m domain_pretrain.commands",
        "torchrun": "-m torch.distributed.run",
        "tensorboard": "-m tensorboard.main",
        "python3": "",
    }.items():
        write_command(folder / "bin" / name, f'exec {sys.executable} {words} "$@"')
    return folder


def shell(clone: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in the clone, as a user would who has it installed."""
    path = f"{clone / 'bin'}{os.pathsep}{os.environ['PATH']}"
    env = environment(PATH=path, PYTHONPATH=str(ROOT / "src"), **variables)
    return subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
