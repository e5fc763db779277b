"""Parquet files, where pyarrow is installed. Flat columns; types are given, never guessed."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openfed.data.column import Column, Kind
from openfed.data.opening import (
    LIMIT,
    check_size,
    missing_at,
    opened,
    positions,
    refused,
    text_array,
)
from openfed.data.table import Table
from openfed.typing import Array

_WHAT = "parquet file"
_ROWS = 1 << 16  # read at a time
_ARROW: Mapping[Kind, str] = {
    "number": "float64",
    "integer": "int64",
    "boolean": "bool_",
    "text": "large_string",
}
_TAKEN: Mapping[Kind, tuple[str, ...]] = {
    "number": ("is_floating", "is_integer", "is_decimal"),
    "integer": ("is_integer",),
    "boolean": ("is_boolean",),
    "text": ("is_string", "is_large_string"),
}


def read_parquet(path: str | Path, columns: Sequence[Column], *, limit: int = LIMIT) -> Table:
    """The columns asked for, in that order; rows count from 1. `limit`: bytes of file and columns.

    A number may be stored as float, integer or decimal; a text also as a dictionary of texts. NaN
    is a missing number, the empty text a missing text.
    Raises: TaskError: K41 no such file, or too large; K42 not a parquet file; K43 a column of
    another type, or values beyond 64 bits; K44 values are missing, with their rows; K45 columns
    that are not there; K46 pyarrow is not installed.
    """
    try:
        import pyarrow  # noqa: PLC0415  (optional: only some sites have parquet files)
        import pyarrow.compute  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise refused("K46", _WHAT, "needs pyarrow: pip install pyarrow") from None
    with opened(path, _WHAT, limit) as file:
        try:
            schema = parquet.ParquetFile(file).schema_arrow
            for place, column in zip(positions(schema.names, columns, _WHAT), columns, strict=True):
                _check_type(pyarrow.types, schema.field(place).type, column)
            texts = [column.name for column in columns if column.kind == "text"]
            source = parquet.ParquetFile(  # texts as dictionaries: one that repeats takes no room
                file, read_dictionary=texts, page_checksum_verification=True
            )
            schema = source.schema_arrow
            size = sum(1 if column.kind == "boolean" else 8 for column in columns)
            check_size(source.metadata.num_rows * size, _WHAT, limit)
            names = [column.name for column in columns]
            batches = list(_bounded(source.iter_batches(_ROWS, columns=names), limit))
            table = pyarrow.Table.from_batches(batches, pyarrow.schema(map(schema.field, names)))
            table.validate(full=True)  # offsets within bounds, texts in UTF-8
        except (pyarrow.ArrowException, OSError, ValueError, KeyError):
            raise refused("K42", _WHAT, "is damaged, or no parquet file") from None
    parts = tuple(_array(pyarrow, table.column(c.name), c, limit) for c in columns)
    return Table(tuple(names), parts)


def _check_type(types: Any, found: Any, column: Column) -> None:
    inner = found.value_type if types.is_dictionary(found) and column.kind == "text" else found
    if not any(getattr(types, name)(inner) for name in _TAKEN[column.kind]):
        at = f"{_WHAT}, column {column.name!r}"
        raise refused("K43", at, f"expected {column.kind}, it is stored as another type")


def _bounded(batches: Any, limit: int) -> Any:
    size = 0
    for batch in batches:
        size += batch.nbytes
        check_size(size, _WHAT, limit)
        yield batch


def _array(pyarrow: Any, found: Any, column: Column, limit: int) -> Array:
    at = f"{_WHAT}, column {column.name!r}"
    if column.kind == "text":
        lengths = [pyarrow.compute.utf8_length(chunk.dictionary) for chunk in found.chunks]
        longest = max((pyarrow.compute.max(each).as_py() or 0 for each in lengths), default=0)
        check_size(4 * len(found) * longest, at, limit)
    try:
        cast = found.cast(getattr(pyarrow, _ARROW[column.kind])())
    except pyarrow.ArrowException:
        raise refused("K43", at, "has values that 64 bits do not hold exactly") from None
    gaps = np.asarray(cast.is_null(nan_is_null=True).to_numpy())
    if column.kind == "text":
        gaps = gaps | np.asarray(pyarrow.compute.equal(cast, "").fill_null(True).to_numpy())
    if gaps.any() and not column.may_miss:
        where = missing_at("row", np.flatnonzero(gaps) + 1)
        raise refused("K44", at, f"values are missing at {where}")
    if column.kind == "text":
        return text_array(cast.fill_null("").to_pylist(), at, limit)
    if column.kind == "number":
        values = np.array(cast.fill_null(np.nan).to_numpy(), dtype=np.float64)
        if np.isinf(values).any():
            raise refused("K43", at, "has an infinite number")
        return values
    return np.array(cast.to_numpy(), dtype=np.bool_ if column.kind == "boolean" else np.int64)
