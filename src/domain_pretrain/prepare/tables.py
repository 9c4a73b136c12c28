"""Comma- and tab-separated text → the cells of one column."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from domain_pretrain.errors import shorten
from domain_pretrain.prepare.errors import PrepareError

csv.field_size_limit((1 << 31) - 1)  # the default, 128 KiB, is no document


def check_column(path: Path, names: Sequence[str], text_key: str, where: str = "") -> None:
    """One column of a table must have the name ``text_key``.

    Raises:
        PrepareError: none has, or several have; names those there are.
    """
    if names.count(text_key) != 1:
        how_many = "no column" if text_key not in names else "more than one column"
        shown = ", ".join(name.encode("utf-8", "replace").decode() for name in names)
        raise PrepareError(
            f"{path}: {how_many} {text_key!r}{f' {where}' if where else ''}; choose one with "
            f"--text-key: {shorten(shown)}"
        )


def split_table(
    path: Path, stream: io.BufferedReader, delimiter: str, text_key: str
) -> Iterator[tuple[int, bytes | None]]:
    """Yield the number of the first line and the cell in the column ``text_key`` of every row.

    The first row names the columns. A cell in double quotes may hold the delimiter, line ends and
    doubled quotes. None where a row has more or fewer cells than the first.

    Raises:
        PrepareError: no such column, or more than one; a quote that does not end.
    """
    # Bytes that are no UTF-8 go through as they are: the row is bad, not the file.
    text = io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="")
    rows = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        check_column(path, names, text_key, "in its first line")
        column, line = names.index(text_key), rows.line_num + 1
        for row in rows:
            if len(row) == len(names):
                yield line, row[column].encode("utf-8", "surrogateescape")
            elif row:
                yield line, None
            line = rows.line_num + 1
    except csv.Error as error:
        raise PrepareError(
            f"{path}:{rows.line_num}: cannot be read as a table: {error}; a cell with quotes in it "
            "has to be in quotes, with its own doubled"
        ) from error
