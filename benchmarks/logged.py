"""A run of real Megatron, as a user starts it, and its log."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL = 20  # lines of the log, in the message


def run_megatron(
    words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> None:
    """``python -m domain_pretrain WORDS``, with one thread unless OMP_NUM_THREADS says otherwise.

    Args:
        words: Megatron's flags, perhaps behind a script.
        log: the file for what it says.
        environment: variables, besides this process's.

    Raises:
        RuntimeError: it failed; the message names the log and shows the end of it.
    """
    command = [sys.executable, "-m", "domain_pretrain", *words]
    variables = {"OMP_NUM_THREADS": "1", **os.environ, **(environment or {})}
    with log.open("w", encoding="utf-8") as file:
        code = subprocess.run(command, env=variables, stdout=file, stderr=file).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL:])
        raise RuntimeError(f"Megatron ended with exit code {code}; the end of {log}:\n{tail}")
