"""What is common to all paths that a user may give."""

from __future__ import annotations

import re
from pathlib import Path

_SCHEME = re.compile(r"[A-Za-z][\w+.-]*:/")


def is_remote(path: str | Path) -> bool:
    """Whether ``path`` lies in an object store (``s3://``, ``msc://``), not on a disk."""
    return bool(_SCHEME.match(str(path)))  # one slash: pathlib folds "s3://a" into "s3:/a"
