"""Runs of a mixed stream, each sample of which is written down; see ``e2e/stream_gpt.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.launch import Run, train


def recorded_run(
    folder: Path, blend: list[str], mix: dict[str, Any] | None, *flags: str | Path, **how: Any
) -> Run:
    """Train in a folder, which takes the rows; ``how`` is that of :func:`.train`.

    Args:
        folder: of the run; made where it is not there.
        blend: ``--data-path`` and so on.
        mix: the section of the config; None: without a config.
        flags: further ones.
        how: may bring an ``env`` besides.
    """
    folder.mkdir(exist_ok=True)
    words: list[str | Path] = [*blend, *flags]
    if mix is not None:
        (folder / "mix.yaml").write_text(json.dumps({"mix": mix}), encoding="utf-8")
        words += ["--domain-config", folder / "mix.yaml"]
    env = {"RECORD_DIR": str(folder), **how.pop("env", {})}
    return train(folder, *words, env=env, **{"script": "stream_gpt.py", **how})
