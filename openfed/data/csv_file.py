"""Comma-separated values with a header. Types are given, never guessed: every site reads the same.

Source: RFC 4180, in UTF-8 (a byte order mark is dropped), plain or gzipped. Lines count from 1, the
header's.
"""

import csv
import io
import math
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

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
    unzipped,
)
from openfed.data.table import Table
from openfed.errors import TaskError
from openfed.typing import Array

MAX_LINE = 1 << 20
"""Characters of a line; a cell has at most 131072 (`csv.field_size_limit`)."""

_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_BOOLEANS = {"true": 1, "false": 0, "1": 1, "0": 0}
_MISSING = frozenset(["", "na", "n/a", "nan", "null"])  # of a text, the empty one only


def read_csv(
    path: str | Path,
    columns: Sequence[Column],
    *,
    delimiter: Literal[",", ";", "\t", "|"] = ",",
    limit: int = LIMIT,
) -> Table:
    """The columns asked for, in that order; others are left out, empty lines too.

    A number is finite and has a decimal point, never a comma; a boolean is true, false, 1 or 0.
    Missing are empty cells and, but in a text, NA, N/A, NaN and null. A gzipped file is unpacked
    while it is read. `limit`: bytes of the file, characters of its text, bytes of a text column.
    Raises: TaskError: K41 no such file, or too large; K42 not CSV in UTF-8; K43 a cell is not of
    its kind; K44 values are missing, with their lines; K45 columns that are not there.
    """
    with opened(path, "csv file", limit) as raw, unzipped(raw, "csv file") as plain:
        text = io.TextIOWrapper(plain, encoding="utf-8-sig", newline="")
        rows = csv.reader(_lines(text, limit), delimiter=delimiter, strict=True)
        try:
            header = next(rows, [])
            places = positions(header, columns, "csv file")
            return _table(rows, len(header), columns, places, limit)
        except csv.Error as error:
            raise refused("K42", f"csv file, line {rows.line_num}", str(error)) from None
        except UnicodeDecodeError:
            place = f"csv file, after line {rows.line_num}"
            raise refused("K42", place, "there are bytes that are not UTF-8") from None


def _lines(text: io.TextIOWrapper, limit: int) -> Iterator[str]:
    size = 0
    while line := text.readline(MAX_LINE + 1):
        size += len(line)  # of a gzipped file, `opened` has seen the short form alone
        check_size(size, "csv file", limit)
        if len(line) > MAX_LINE:
            raise csv.Error(f"a line is longer than {MAX_LINE} characters")
        yield line


def _table(
    rows: Any, width: int, columns: Sequence[Column], places: Sequence[int], limit: int
) -> Table:
    stores: list[Any] = [_STORES[column.kind]() for column in columns]
    gaps: list[array[int]] = [array("q") for _ in columns]
    parsers = [_PARSERS[column.kind] for column in columns]
    parts = list(zip(columns, places, parsers, stores, gaps, strict=True))
    line = rows.line_num + 1
    for row in rows:
        if row and len(row) != width:
            message = f"has {len(row)} cells, expected {width}"
            raise refused("K42", f"csv file, line {line}", message)
        for column, place, parse, store, gap in parts if row else ():
            try:
                store.append(parse(row[place]))
            except ValueError as error:
                if not _is_missing(row[place], column.kind):
                    at = f"csv file, line {line}, column {column.name!r}"
                    raise refused("K43", at, f"expected {error}") from None
                store.append(_FILLERS[column.kind])
                if not column.may_miss:
                    gap.append(line)
        line = rows.line_num + 1
    _check_gaps(columns, gaps)
    arrays = tuple(_array(c, s, limit) for c, s in zip(columns, stores, strict=True))
    return Table(tuple(column.name for column in columns), arrays)


def _check_gaps(columns: Sequence[Column], gaps: "Sequence[array[int]]") -> None:
    told = [
        f"column {column.name!r} at {missing_at('line', np.asarray(gap))}"
        for column, gap in zip(columns, gaps, strict=True)
        if gap
    ]
    if told:
        raise TaskError("K44", f"csv file: values are missing: {'; '.join(told)}")


def _is_missing(cell: str, kind: Kind) -> bool:
    return not cell if kind == "text" else cell.strip(" ").lower() in _MISSING


def _number(cell: str) -> float:
    bare = cell.strip(" ")
    value = float(bare) if _NUMBER.fullmatch(bare) else math.nan
    if not math.isfinite(value):
        raise ValueError("a finite number, such as -1.5 or 2e3")
    return value


def _integer(cell: str) -> int:
    bare = cell.strip(" ")
    value = int(bare) if _INTEGER.fullmatch(bare) else 1 << 63
    if not -(1 << 63) <= value < 1 << 63:
        raise ValueError("an integer of at most 64 bits")
    return value


def _boolean(cell: str) -> int:
    value = _BOOLEANS.get(cell.strip(" ").lower())
    if value is None:
        raise ValueError("true, false, 1 or 0")
    return value


def _text(cell: str) -> str:
    if not cell:
        raise ValueError("a text")
    return cell


def _array(column: Column, store: Any, limit: int) -> Array:
    if column.kind == "text":
        return text_array(store, f"csv file, column {column.name!r}", limit)
    return np.array(store, dtype=_DTYPES[column.kind])


_PARSERS: Mapping[Kind, Callable[[str], float | str]] = {
    "number": _number,
    "integer": _integer,
    "boolean": _boolean,
    "text": _text,
}
_STORES: Mapping[Kind, Callable[[], Any]] = {
    "number": lambda: array("d"),
    "integer": lambda: array("q"),
    "boolean": lambda: array("b"),
    "text": list,
}
_FILLERS: Mapping[Kind, float | str] = {"number": math.nan, "integer": 0, "boolean": 0, "text": ""}
_DTYPES: Mapping[Kind, Any] = {"number": np.float64, "integer": np.int64, "boolean": np.bool_}
