"""A run's ``domain_metrics.jsonl``, as far as another run can have the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS = "domain_metrics.jsonl"


def counted(folder: Path) -> bytes:
    """The lines without events, and without the host's own numbers: a run's time is among them."""
    path = folder / METRICS
    content = path.read_bytes() if path.exists() else b""
    return b"".join(map(_counted, content.splitlines(keepends=True)))


def windows(folder: Path, split: str | None = None) -> list[dict[str, Any]]:
    """What :func:`counted` leaves, parsed; of one split or of all."""
    entries = [json.loads(line) for line in counted(folder).splitlines()]
    return [entry for entry in entries if split in (None, entry["split"])]


def _counted(line: bytes) -> bytes:
    try:
        entry = json.loads(line)
    except ValueError:  # torn
        return line
    if "event" in entry:
        return b""
    entry.pop("host", None)
    return json.dumps(entry).encode() + b"\n"
