"""Card payments in a CSV file: what is read, and the eight numbers that are made of it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from src.make_data import write_payments

from openfed.data.column import Column
from openfed.data.csv_file import read_csv
from openfed.data.table import Table

COLUMNS = (
    Column("amount", "number"),
    Column("hour", "integer"),
    Column("distance_km", "number", missing=True),
    Column("declined_before", "integer"),
    Column("abroad", "boolean"),
    Column("channel", "text"),
    Column("fraud", "integer"),
)
Batch = tuple[NDArray[np.float64], NDArray[np.int64]]


class Payments:
    """A bank's own payments; every fifth is held out. `source`: the path of the CSV file."""

    def __init__(self, source: str) -> None:
        path = Path(source)
        if not path.exists():
            write_payments(path.parent)
        self._table = read_csv(path, COLUMNS)
        self._inputs, self._targets = features(self._table), self._table.column("fraud")
        rows = np.arange(self._table.rows)
        self._train, self._held_out = rows[rows % 5 != 4], rows[rows % 5 == 4]

    def table(self) -> Table:
        """What the plan's data contract is about."""
        return self._table

    def train(self, *, seed: int) -> Iterator[Batch]:
        yield self._rows(np.random.default_rng(seed).permutation(self._train))

    def validate(self) -> Iterator[Batch]:
        yield self._rows(self._held_out)

    def __len__(self) -> int:
        return len(self._train)

    def _rows(self, rows: NDArray[np.int64]) -> Batch:
        return self._inputs[rows], self._targets[rows]


def features(table: Table) -> NDArray[np.float64]:
    """float64 [payments, 8], each about -2 to 2. Scaled by constants, the same at every bank, so
    that none has to tell its own means; a distance that is missing counts as 10 km."""
    hour, distance = table.column("hour"), np.nan_to_num(table.column("distance_km"), nan=10.0)
    return np.column_stack(
        [
            np.log10(1 + table.column("amount")) - 1.5,
            np.cos(2 * np.pi * hour / 24),  # 1 at midnight, -1 at noon
            np.sin(2 * np.pi * hour / 24),
            np.log10(1 + distance) - 1,
            np.minimum(table.column("declined_before"), 5) / 2,
            table.column("abroad"),
            table.column("channel") == "online",
            table.column("channel") == "stripe",
        ]
    ).astype(np.float64)
