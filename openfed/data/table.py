"""Tables and samples as frozen values, and what a column is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from openfed.typing import Array

Kind = Literal["number", "integer", "boolean", "text"]

KINDS: Mapping[Kind, str] = {"number": "iuf", "integer": "iu", "boolean": "b", "text": "U"}
"""Kinds of numpy dtypes that a column of a kind may have; readers give float64, int64, bool, str.
"""


@dataclass(frozen=True)
class Column:
    """What is known of a column before its values are seen.

    missing: NaN (number) or the empty text may stand in it; integers and booleans never miss.
    least, most: bounds that belong to the range (number, integer); None: no bound.
    values: the only ones allowed (text: str, integer: int); empty: any.
    """

    name: str
    kind: Kind
    missing: bool = False
    least: float | None = None
    most: float | None = None
    values: tuple[str | int, ...] = ()

    @property
    def may_miss(self) -> bool:
        return self.missing and self.kind in ("number", "text")


@dataclass(frozen=True)
class Table:
    """Columns by name: `arrays[i]`, of shape (rows,), belongs to `columns[i]`."""

    columns: tuple[str, ...]
    arrays: tuple[Array, ...]

    @property
    def rows(self) -> int:
        return len(self.arrays[0]) if self.arrays else 0

    def column(self, name: str) -> Array:
        """Raises: ValueError: there is none of that name."""
        return self.arrays[self.columns.index(name)]


@dataclass(frozen=True)
class Samples:
    """`inputs` of shape (samples, ...), and a target for each, of shape (samples,), if any."""

    inputs: Array
    targets: Array | None = None
