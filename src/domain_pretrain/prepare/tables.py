"""Comma- and tab-separated text → the cells of some columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from domain_pretrain.errors import shorten
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.record import Selection

csv.field_size_limit((1 << 31) - 1)  # the default, 128 KiB, is no document

Row = tuple[bytes | None, ...]
"""Cells, in the order of ``Selection.columns``; None for null."""


def check_column(
    path: Path, names: Sequence[str], column: str, option: str, where: str = ""
) -> None:
    """One column of a table must have the name ``column``, which ``option`` has given.

    Raises:
        PrepareError: none has, or several have; names those there are.
    """
    if names.count(column) != 1:
        how_many = "no column" if column not in names else "more than one column"
        shown = ", ".join(name.encode("utf-8", "replace").decode() for name in names)
        raise PrepareError(
            f"{path}: {how_many} {column!r}{f' {where}' if where else ''}; choose one with "
            f"{option}: {shorten(shown)}"
        )


def split_table(
    path: Path, stream: io.BufferedReader, delimiter: str, selection: Selection
) -> Iterator[tuple[int, Row | None]]:
    """Yield the number of the first line and the cells in the selection's columns of every row.

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
        for name in selection.columns:
            check_column(path, names, name, selection.option(name), "in its first line")
        columns, line = [names.index(name) for name in selection.columns], rows.line_num + 1
        for row in rows:
            if len(row) == len(names):
                yield line, tuple(row[at].encode("utf-8", "surrogateescape") for at in columns)
            elif row:
                yield line, None
            line = rows.line_num + 1
    except csv.Error as error:
        raise PrepareError(
            f"{path}:{rows.line_num}: cannot be read as a table: {error}; a cell with quotes in it "
            "has to be in quotes, with its own doubled"
        ) from error
