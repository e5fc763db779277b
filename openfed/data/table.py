"""Tables and samples as frozen values."""

from dataclasses import dataclass

from openfed.typing import Array


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
