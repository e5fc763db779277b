"""Whether data hold what a plan demands of them. Pure; no value is shown.

A message may go to the aggregator: it holds the contract's own words only. Even how many samples
break a rule, and which, stays at the site (`Broken.count`, `Broken.rows`): a contract could
otherwise be written to ask for a single record.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from openfed.data.column import KINDS, Column
from openfed.data.contract import Contract, listed
from openfed.data.table import Samples, Table
from openfed.errors import TaskError
from openfed.typing import Array

PLAIN = "biufcUS"
"""Kinds of dtypes that inputs may have."""

ROWS = 10
"""Rows that `Broken` keeps."""


@dataclass(frozen=True)
class Broken:
    """A broken rule. `str()` may travel; count and rows (the first, from 0) stay at the site."""

    where: str
    message: str
    count: int = 0
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def check(contract: Contract, data: Table | Samples) -> list[Broken]:
    """Every rule that is broken, in the contract's order; none: the data are as demanded."""
    found = _check_table(contract, data) if isinstance(data, Table) else _inputs(contract, data)
    count = data.rows if isinstance(data, Table) else sum(data.inputs.shape[:1])
    if count < contract.samples:
        message = f"expected at least {contract.samples}, there are fewer"
        found.append(Broken("samples", message, count))
    return found


def demand(contract: Contract, data: Table | Samples) -> None:
    """Raises: TaskError: K49, with every rule that is broken."""
    if broken := check(contract, data):
        raise TaskError("K49", f"data contract: {'; '.join(map(str, broken))}")


def _check_table(contract: Contract, table: Table) -> list[Broken]:
    if contract.shape is not None or contract.dtype is not None:
        return [Broken("inputs", "expected arrays, found a table")]
    if len({array.shape for array in table.arrays}) > 1:
        return [Broken("columns", "are not of one length")]
    found = []
    for column in contract.columns:
        where = f"column {column.name!r}"
        if column.name in table.columns:
            found += _column(column, table.column(column.name), where)
        else:
            found.append(Broken(where, "is not there"))
    if contract.classes and contract.target in table.columns:
        found += _classes(contract.classes, table.column(contract.target), "target")
    return found


def _column(column: Column, values: Array, where: str) -> list[Broken]:
    if values.ndim != 1 or values.dtype.kind not in KINDS[column.kind]:
        return [Broken(where, f"expected {column.kind}, found another kind of values")]
    missing = _missing(values)
    found = []
    if not column.may_miss:
        found += _rule(where, "values are missing", missing)
    if values.dtype.kind == "f":
        found += _rule(where, "there are infinite numbers", np.isinf(values))
    if values.dtype.kind in "iuf":
        low = -np.inf if column.least is None else column.least
        high = np.inf if column.most is None else column.most
        with np.errstate(over="ignore"):  # a bound beyond a short dtype is an infinity there
            outside = ((values < low) | (values > high)) & np.isfinite(values)
        found += _rule(where, f"there are values outside {_range(column)}", outside)
    if column.values:
        strange = ~missing & ~np.isin(values, _of_kind(column.values, values))
        found += _rule(where, f"there are other values than {listed(column.values)}", strange)
    return found


def _inputs(contract: Contract, data: Samples) -> list[Broken]:
    if contract.columns:
        return [Broken("columns", "expected a table, found arrays")]
    found, inputs = [], data.inputs
    if not inputs.ndim or inputs.dtype.kind not in PLAIN:
        return [Broken("inputs", "expected an array of numbers or texts, a sample a row")]
    if contract.shape is not None and not _fits(inputs.shape[1:], contract.shape):
        shapes = f"{_shape(contract.shape)}, found {_shape(inputs.shape[1:])}"
        found.append(Broken("inputs", f"expected samples of shape {shapes}"))
    if contract.dtype is not None and inputs.dtype != np.dtype(contract.dtype):
        found.append(Broken("inputs", f"expected {contract.dtype}, found another dtype"))
    if inputs.dtype.kind in "fc":
        strange = np.fromiter((not np.isfinite(row).all() for row in inputs), bool, len(inputs))
        found += _rule("inputs", "there are numbers that are not finite", strange)
    if contract.classes and data.targets is None:
        found.append(Broken("targets", "are not there"))
    elif data.targets is not None and len(data.targets) != len(inputs):
        found.append(Broken("targets", "there are not as many as samples"))
    elif contract.classes and data.targets is not None:
        found += _classes(contract.classes, data.targets, "targets")
    return found


def _classes(classes: Sequence[str | int], values: Array, where: str) -> list[Broken]:
    expected = np.asarray(classes)
    kinds = "iu" if expected.dtype.kind == "i" else "U"
    if values.ndim != 1 or values.dtype.kind not in kinds:
        word = "integers" if kinds == "iu" else "texts"
        return [Broken(where, f"expected {word}, one per sample, found another kind of values")]
    strange = ~np.isin(values, expected)
    return _rule(where, f"there are other classes than {listed(classes)}", strange)


def _rule(where: str, message: str, wrong: Array) -> list[Broken]:
    rows = np.flatnonzero(wrong)
    first = tuple(int(row) for row in rows[:ROWS])
    return [Broken(where, message, len(rows), first)] if len(rows) else []


def _missing(values: Array) -> Array:
    if values.dtype.kind == "f":
        return np.isnan(values)
    return values == "" if values.dtype.kind == "U" else np.zeros(len(values), bool)


def _of_kind(values: Sequence[str | int], like: Array) -> Array:
    return np.asarray(values, dtype=np.str_ if like.dtype.kind == "U" else None)


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(
        each is None or each == have for each, have in zip(shape, found, strict=True)
    )


def _shape(shape: Sequence[int | None]) -> str:
    return "(" + ", ".join("any" if each is None else str(each) for each in shape) + ")"


def _range(column: Column) -> str:
    if column.least is None or column.most is None:
        return f"{column.least} and more" if column.most is None else f"{column.most} and less"
    return f"{column.least} to {column.most}"
