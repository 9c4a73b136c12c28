"""What is common to all paths that a user may give."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:/")


def is_remote(path: str | Path) -> bool:
    """Whether ``path`` lies in an object store (``s3://``, ``msc://``), not on a disk."""
    return bool(_SCHEME.match(str(path)))  # one slash: pathlib folds "s3://a" into "s3:/a"


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is, or is going to be."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
