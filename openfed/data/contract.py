"""What a plan demands of every site's data, and whether data hold it. Pure; no value is shown.

A message may go to the aggregator: it holds the contract's own words only. Even how many samples
break a rule, and which, stays at the site (`Broken.count`, `Broken.rows`): a contract could
otherwise be written to ask for a single record.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from openfed.data.table import KINDS, Column, Samples, Table
from openfed.errors import PlanError, Problem, TaskError
from openfed.typing import Array, Json

DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")

PLAIN = "biufcUS"
"""Kinds of dtypes that inputs may have."""

ROWS = 10
"""Rows that `Broken` keeps."""


@dataclass(frozen=True)
class Contract:
    """columns, target: of a table; shape (None: any length), dtype: of the inputs of samples.

    classes: what stands in the target; not all of them need to be at every site. samples: the
    fewest that a site may have.
    """

    columns: tuple[Column, ...] = ()
    target: str | None = None
    shape: tuple[int | None, ...] | None = None
    dtype: str | None = None
    classes: tuple[str | int, ...] = ()
    samples: int = 1


@dataclass(frozen=True)
class Broken:
    """A broken rule. `str()` may travel; count and rows (the first, from 0) stay at the site."""

    where: str
    message: str
    count: int = 0
    rows: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


# -- data against a contract -----------------------------------------------------------------------


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
        found += _rule(where, f"there are other values than {_listed(column.values)}", strange)
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
    return _rule(where, f"there are other classes than {_listed(classes)}", strange)


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


def _listed(values: Sequence[str | int]) -> str:
    first = ", ".join(repr(value) for value in values[:20])
    return f"{first} and {len(values) - 20} more" if len(values) > 20 else first


# -- a contract as a plan has it -------------------------------------------------------------------

_KEYS = ("columns", "target", "shape", "dtype", "classes", "samples")
Wrong = Callable[..., None]
"""Notes a problem: (place, message) or (place, message, code)."""

_COLUMN_KEYS = ("name", "kind", "missing", "range", "values")


def contract_of(given: Json, path: str = "data_contract") -> Contract:
    """Read the plan's mapping, or what its canonical form has of it.

    {columns: [{name, kind, missing: false, range: [low, high] (null: open), values: [...]}, ...],
    target: a column's name, shape: [28, 28] (null: any), dtype, classes: [...], samples: 1}; all
    keys but a column's name and kind may be left out, or null.
    Raises: PlanError with every problem: P26 not of this form, P27 demands that exclude each other.
    """
    problems: list[Problem] = []

    def wrong(at: str, message: str, code: str = "P26") -> None:
        problems.append(Problem(code, "", f"{path}.{at}" if at else path, message))

    parts = _mapping(given, _KEYS, "", wrong)
    columns = _columns(parts.get("columns"), wrong)
    samples = parts.get("samples")
    if samples is not None and not (_is_integer(samples) and samples >= 1):
        wrong("samples", "expected an integer of 1 or more")
    if (dtype := parts.get("dtype")) is not None and dtype not in DTYPES:
        wrong("dtype", f"expected one of {', '.join(DTYPES)}")
    if (target := parts.get("target")) is not None and not isinstance(target, str):
        wrong("target", "expected the name of a column")
    classes = _choices(parts.get("classes"), "classes", wrong)
    shape = _read_shape(parts.get("shape"), wrong)
    if problems:
        raise PlanError(tuple(problems))
    contract = Contract(columns, target, shape, dtype, classes, 1 if samples is None else samples)
    _contradictions(contract, wrong)
    if problems:
        raise PlanError(tuple(problems))
    return contract


def _mapping(given: Any, keys: Sequence[str], at: str, wrong: Wrong) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        wrong(at, f"expected a mapping with {', '.join(keys)}")
        return {}
    for key in given:
        if key not in keys:
            wrong(f"{at}.{key}".lstrip("."), f"unknown key; known: {', '.join(keys)}")
    return given


def _columns(given: Any, wrong: Wrong) -> tuple[Column, ...]:
    if given is None:
        return ()
    if not isinstance(given, list | tuple) or not given:
        wrong("columns", "expected a list of columns")
        return ()
    return tuple(_read_column(each, f"columns[{i}]", wrong) for i, each in enumerate(given))


def _read_column(given: Any, at: str, wrong: Wrong) -> Column:
    parts = _mapping(given, _COLUMN_KEYS, at, wrong)
    if not isinstance(given, Mapping):
        return Column("", "text")
    name, kind, missing = parts.get("name"), parts.get("kind"), parts.get("missing")
    if not isinstance(name, str) or not name:
        wrong(f"{at}.name", "expected the column's name")
    known = next((each for each in KINDS if each == kind), None)
    if known is None:
        wrong(f"{at}.kind", f"expected one of {', '.join(KINDS)}")
    if missing is not None and not isinstance(missing, bool):
        wrong(f"{at}.missing", "expected true or false")
    least, most = _read_range(parts.get("range"), f"{at}.range", wrong)
    values = _choices(parts.get("values"), f"{at}.values", wrong)
    return Column(str(name), known or "text", missing is True, least, most, values)


def _read_range(given: Any, at: str, wrong: Wrong) -> tuple[float | None, float | None]:
    if given is None:
        return None, None
    bounds = tuple(given) if isinstance(given, list | tuple) else ()
    if len(bounds) != 2 or bounds == (None, None) or not all(map(_is_bound, bounds)):
        wrong(at, "expected [low, high], finite numbers, null for one that is open")
        return None, None
    return bounds[0], bounds[1]


def _choices(given: Any, at: str, wrong: Wrong) -> tuple[str | int, ...]:
    if given is None:
        return ()
    found = tuple(given) if isinstance(given, list | tuple) else ()
    integers = all(_is_integer(each) and abs(each) < 1 << 63 for each in found)
    texts = all(isinstance(each, str) and each and "\0" not in each for each in found)
    if not found or not (integers or texts) or len(set(found)) < len(found):
        wrong(at, "expected a list of integers, or of texts, each once")
        return ()
    return found


def _read_shape(given: Any, wrong: Wrong) -> tuple[int | None, ...] | None:
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not all(
        each is None or (_is_integer(each) and each >= 1) for each in given
    ):
        wrong("shape", "expected a list of integers of 1 or more, null for any: of one sample")
        return None
    return tuple(given)


def _contradictions(contract: Contract, wrong: Wrong) -> None:
    names = [column.name for column in contract.columns]
    for index, column in enumerate(contract.columns):
        for key, message in _column_faults(column, names.index(column.name) < index):
            wrong(f"columns[{index}].{key}", message, "P27")
    if names and (contract.shape is not None or contract.dtype is not None):
        wrong("shape" if contract.shape is not None else "dtype", "is not of tables", "P27")
    if contract.target is not None and contract.target not in names:
        wrong("target", f"is none of the columns {', '.join(names) or '(there are none)'}", "P27")
    if names and contract.classes:
        kinds = {column.name: column.kind for column in contract.columns}
        needed = "text" if isinstance(contract.classes[0], str) else "integer"
        if contract.target is None:
            wrong("classes", "need the target that they stand in", "P27")
        elif kinds.get(contract.target, needed) != needed:
            wrong("classes", f"are of kind {needed}, the target is not", "P27")


def _column_faults(column: Column, again: bool) -> list[tuple[str, str]]:
    ranged = column.least is not None or column.most is not None
    kind = {"text": str, "integer": int}.get(column.kind)
    rules = (
        ("name", again, "is there twice"),
        ("missing", column.missing and not column.may_miss, "is only for number and text"),
        ("range", ranged and column.kind not in ("number", "integer"), "is only of numbers"),
        (
            "range",
            column.least is not None and column.most is not None and column.least > column.most,
            "begins after its end",
        ),
        (
            "values",
            bool(column.values) and (kind is None or not isinstance(column.values[0], kind)),
            "are not of the column's kind (text or integer)",
        ),
    )
    return [(key, message) for key, holds, message in rules if holds]


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_bound(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300
