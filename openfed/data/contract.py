"""What a plan demands of every site's data: as a value, read from a plan, and written into one.

Without numpy: a plan is read with it, and that imports nothing heavy.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openfed.data.column import KINDS, Column
from openfed.errors import PlanError, Problem

DTYPES = ("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")

MAX_TEXT = 200
"""Characters of a name or a class: messages hold them."""


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


_KEYS = ("columns", "target", "shape", "dtype", "classes", "samples")
Wrong = Callable[..., None]
"""Notes a problem: (place, message) or (place, message, code)."""

_COLUMN_KEYS = ("name", "kind", "missing", "range", "values")


def contract_of(given: Any, path: str = "data_contract") -> Contract:
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


def contract_json(contract: Contract) -> dict[str, Any]:
    """The canonical form: what `contract_of` reads, every key written out, null for no demand."""
    columns: list[Any] = [
        {
            "name": column.name,
            "kind": column.kind,
            "missing": column.missing,
            "range": None if column.least is column.most is None else [column.least, column.most],
            "values": list(column.values) or None,
        }
        for column in contract.columns
    ]
    return {
        "columns": columns or None,
        "target": contract.target,
        "shape": None if contract.shape is None else list(contract.shape),
        "dtype": contract.dtype,
        "classes": list(contract.classes) or None,
        "samples": contract.samples,
    }


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
    if not isinstance(name, str) or not 0 < len(name) <= MAX_TEXT:
        wrong(f"{at}.name", f"expected the column's name, of at most {MAX_TEXT} characters")
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
    return _plain_number(bounds[0]), _plain_number(bounds[1])


def _plain_number(bound: float | None) -> float | None:
    """10.0 is written as 10, so that one contract has one canonical form."""
    whole = bound is not None and abs(bound) < 1 << 63 and bound == int(bound)
    return int(bound) if bound is not None and whole else bound


def _choices(given: Any, at: str, wrong: Wrong) -> tuple[str | int, ...]:
    if given is None:
        return ()
    found = tuple(given) if isinstance(given, list | tuple) else ()
    integers = all(_is_integer(each) and abs(each) < 1 << 63 for each in found)
    texts = all(_is_word(each) and "\0" not in each for each in found)
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
        wrong(
            "target", f"is none of the columns {listed(names)[:300] or '(there are none)'}", "P27"
        )
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


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT


def _is_bound(value: Any) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def listed(values: Sequence[str | int]) -> str:
    first = ", ".join(repr(value) for value in values[:20])
    return f"{first} and {len(values) - 20} more" if len(values) > 20 else first
