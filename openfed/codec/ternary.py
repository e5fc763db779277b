"""The largest values, each as plus or minus their mean magnitude."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from openfed.codec.base import F32, Codes, Draw
from openfed.codec.sparsify import (
    check_fraction,
    kept,
    largest,
    most_positions,
    positions_size,
    read_positions,
    write_positions,
)
from openfed.codec.symbols import look_up


@dataclass(frozen=True)
class Ternary:
    """The ceil(fraction * n) values of greatest magnitude become +-m, m the mean of their
    magnitudes; the others become 0.

    Error: |x - C(x)|^2 = |x|^2 - k m^2: a contraction, in both forms; not unbiased. Bytes per
    element: about fraction (log2(1 / fraction) + 2.5) / 8, and 7 for each chunk: 0.011 at 1%.
    Source: STC, Sattler et al., arXiv:1903.02891, algorithm 1.
    """

    fraction: float = 0.01

    form: ClassVar = "code"
    levels: ClassVar = 2

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    def side_size(self, data: memoryview, n: int) -> int:
        return 4 + positions_size(data[4:], self.count(n), n)

    def most_side(self, n: int) -> int:
        return 4 + most_positions(self.count(n), n)

    def count(self, n: int) -> int:
        return kept(self.fraction, n)

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        positions = largest(x, self.count(x.size))
        values = x[positions]
        mean = np.abs(values).mean(dtype=np.float64).astype("<f4")
        return mean.tobytes() + write_positions(positions, x.size), (values > 0).astype(np.uint8)

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        mean = np.frombuffer(side[:4], "<f4")[0]
        values = np.empty(self.count(out.size), np.float32)
        look_up(np.array([-mean, mean], np.float32), codes, per, values)
        out[:] = 0
        out[read_positions(side[4:], values.size, out.size)] = values
