"""The tools that a Megatron-LM checkout looks for on PATH."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path


def tools(folder: Path) -> Path:
    """The ``python3`` and ``python3-config`` that a checkout compiles its dataset helper with."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    scripts = {"python3": f'exec "{sys.executable}" "$@"', "python3-config": f"echo {suffix}"}
    folder.mkdir()
    for name, line in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder
