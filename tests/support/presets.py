"""The flags of a preset in configs/recipes."""

from __future__ import annotations

import subprocess

from support.pages import ROOT


def preset(name: str) -> list[str]:
    """As bash has them: of ``NAME.env``, the array of that name in capitals."""
    script = f'source configs/recipes/{name}.env; printf "%s\\n" "${{{name.upper()}[@]}}"'
    done = subprocess.run(
        ["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()
