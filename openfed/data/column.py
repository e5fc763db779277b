"""What a column is. Without numpy: plans are read with it, and that imports nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
