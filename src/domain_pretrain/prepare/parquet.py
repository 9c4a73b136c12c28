"""Parquet → the cells of some columns, a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from domain_pretrain.errors import shorten
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.record import Selection
from domain_pretrain.prepare.tables import Row, check_column

ROWS = 512


def split_parquet(path: Path, selection: Selection) -> Iterator[tuple[range, list[Row], int]]:
    """Yield rows' numbers, from 1, their cells in the selection's columns, and the bytes read.

    Raises:
        PrepareError: the file cannot be read.
    """
    pyarrow, parquet = import_pyarrow(path)
    columns = list(selection.columns)
    try:
        with parquet.ParquetFile(path) as file:
            size, rows, row = path.stat().st_size, max(1, file.metadata.num_rows), 1
            for batch in file.iter_batches(batch_size=ROWS, columns=columns):
                cells = [_cells(pyarrow, _column(batch, name)) for name in columns]
                numbers = range(row, row + batch.num_rows)
                row = numbers.stop
                yield numbers, list(zip(*cells, strict=True)), size * (row - 1) // rows
    except (pyarrow.ArrowException, OSError) as error:
        raise PrepareError(f"{path}: cannot be read as Parquet: {error}") from error


def check_parquet(path: Path, selection: Selection) -> None:
    """Check that ``path`` holds the selection's columns, of a type that becomes text.

    Raises:
        PrepareError: pyarrow is missing, the file is broken, or a column is absent, there twice or
            of another type.
    """
    pyarrow, parquet = import_pyarrow(path)
    try:
        schema = parquet.read_schema(path)
        names = schema.names
    except UnicodeDecodeError as error:
        raise PrepareError(
            f"{path}: the name of a column is not UTF-8 ({error.object!r}); rename the column"
        ) from error
    except (pyarrow.ArrowException, OSError) as error:
        raise PrepareError(f"{path}: cannot be read as Parquet: {error}") from error
    for name in selection.columns:
        top, *within = _path(name, names)
        check_column(path, names, top, selection.option(name))
        kind = schema.field(top).type
        for key in within:
            if not pyarrow.types.is_struct(kind) or kind.get_field_index(key) < 0:
                raise PrepareError(f"{path}: no {key!r} of {name!r} in column {top!r}, a {kind}")
            kind = kind.field(key).type
        _check_type(pyarrow, path, name, kind, selection.plain and name in selection.fields)


def _check_type(pyarrow: Any, path: Path, name: str, kind: Any, only_string: bool) -> None:
    types = pyarrow.types
    value = kind.value_type if types.is_dictionary(kind) else kind
    if types.is_string(value) or types.is_large_string(value):
        return
    if only_string:
        raise PrepareError(f"{path}: column {name!r} is {shorten(str(kind), 80)}, not a string")
    if not (types.is_integer(value) or types.is_boolean(value)):
        raise PrepareError(
            f"{path}: column {name!r} is {shorten(str(kind), 80)}, not a string, whole number or "
            "boolean"
        )


def _path(name: str, names: list[str]) -> list[str]:
    """Of a column, or of a field within one."""
    return [name] if name in names else name.split(".")


def _column(batch: Any, name: str) -> Any:
    from pyarrow import compute

    top, *within = _path(name, batch.schema.names)
    column = batch.column(top)
    return compute.struct_field(column, within) if within else column


def _cells(pyarrow: Any, column: Any) -> list[bytes | None]:
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not pyarrow.types.is_large_string(column.type):
        column = column.cast(pyarrow.string())  # a boolean is spelled as in JSON
    # As binary, so that one cell of invalid UTF-8 is one bad row and not an exception.
    cells: list[bytes | None] = column.cast(pyarrow.large_binary()).to_pylist()
    return cells


def import_pyarrow(path: Path) -> tuple[Any, Any]:
    """``pyarrow`` and its Parquet module.

    Raises:
        PrepareError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PrepareError(
            f"{path}: reading Parquet or .zst needs pyarrow; pip install 'domain-pretrain[prepare]'"
        ) from error
    return pyarrow, pyarrow.parquet
