"""The files that a user means."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from domain_pretrain.prepare.encodings import UTF_8
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.readers import KINDS, has_kind


def resolve(inputs: Sequence[str | Path]) -> list[Path]:
    """Files of ``inputs`` in order; those of a pattern or folder are sorted by name.

    Raises:
        PrepareError: there are none, one is given twice, or is a link that leads nowhere.
    """
    paths: list[Path] = []
    for given in map(str, inputs):
        if os.path.isdir(given):
            below = sorted(glob.glob(f"{glob.escape(given)}/**", recursive=True))
            readable = [Path(path) for path in below if has_kind(Path(path))]
            readable = [path for path in readable if path.is_file() or not path.exists()]
            if not readable:
                raise PrepareError(f"{given}: a folder with none of {', '.join(KINDS)} in it")
            paths += readable
            continue
        # A file whose name happens to hold a bracket is that file.
        found = [given] if os.path.exists(given) else sorted(glob.glob(given, recursive=True))
        files = [Path(path) for path in found if not os.path.isdir(path)]
        if not files:
            raise PrepareError(f"{given}: no such file, and no file matches it as a pattern")
        paths += files
    if not paths:
        raise PrepareError("no input; give text files or patterns of them")
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise PrepareError(
                f"{path}: a link to what is not there; fetch the file behind it, or leave it out"
            )
        if path.resolve() in seen:
            raise PrepareError(f"{path}: given twice; its text would count twice")
        seen.add(path.resolve())
    return paths


def check_names(names: Sequence[str], remedy: str = "rename the file or the folder") -> None:
    """The manifest and the printed flags are text; a file system's names are any bytes.

    Raises:
        PrepareError: one is not UTF-8.
    """
    for name in names:
        try:
            name.encode(UTF_8)
        except UnicodeEncodeError as error:
            shown = name.encode(UTF_8, "backslashreplace").decode()
            raise PrepareError(f"{shown}: the name is not UTF-8; {remedy}") from error
