"""What a benchmark writes: JSON that is whole at any moment, and the commit it was made from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ("src", "tests", "benchmarks", ":!benchmarks/*/results/*")


def write_json(path: Path | None, content: Any, *, lines: str | None = None) -> None:
    """Replace ``path``, if there is one: a reader sees the old content or the new, never half.

    Args:
        path: of the file.
        content: of it.
        lines: the key of a mapping whose entries take a line each, where there are many.
    """
    if path is None:
        return
    text = json.dumps(content if lines is None else {**content, lines: None}, indent=1)
    if lines is not None:
        entries = (f"  {json.dumps(key)}: {json.dumps(one)}" for key, one in content[lines].items())
        text = text.replace(f'"{lines}": null', f'"{lines}": {{\n' + ",\n".join(entries) + "\n }")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(path)


def git(*arguments: str) -> str:
    """What git says of this checkout; nothing where there is no git, or no checkout."""
    # It does not look above: a repository that a copy lies in is another one.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def commit() -> str:
    """Short hash of this checkout, and whether files that are measured are not that commit's.

    Of a copy without git, what the variable COMMIT says.
    """
    found = git("rev-parse", "--short", "HEAD")
    if not found:
        return os.environ.get("COMMIT") or "unknown"
    changed = git("status", "--porcelain", "-uno", "--", *MEASURED)
    return found + (" and uncommitted changes" if changed else "")
