"""The best levels for gaussian values; after `rotate`, all values are nearly gaussian."""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Final

import numpy as np

from openfed.codec.base import F32, U8, Codes, Draw
from openfed.codec.fit import fitted, inverse_of, rms
from openfed.codec.symbols import look_up

HALVES: Final = {
    1: "0.79788456",
    2: "0.45278003 1.5104176",
    4: "0.12839503 0.3880483 0.65675912 0.94234046 1.2562312 1.6180464 2.0690172 2.7325896",
    8: """
       0.0084461932 0.025339383 0.042234984 0.059134604 0.076039856 0.092952355 0.10987372
       0.12680558 0.14374957 0.16070732 0.1776805 0.19467075 0.21167976 0.2287092 0.24576078
       0.26283622 0.27993724 0.29706559 0.31422304 0.33141138 0.34863242 0.365888 0.38317996
       0.40051021 0.41788064 0.43529321 0.45274988 0.47025266 0.4878036 0.50540476 0.52305828
       0.5407663 0.55853102 0.5763547 0.59423962 0.61218813 0.63020261 0.64828553 0.66643939
       0.68466676 0.70297027 0.72135262 0.73981659 0.75836501 0.77700081 0.79572701 0.81454668
       0.83346301 0.85247928 0.87159887 0.89082527 0.91016206 0.92961296 0.94918181 0.96887258
       0.98868937 1.0086364 1.0287182 1.0489392 1.0693042 1.0898181 1.110486 1.1313133 1.1523054
       1.1734682 1.1948076 1.21633 1.2380418 1.2599499 1.2820615 1.304384 1.3269253 1.3496937
       1.3726976 1.3959463 1.4194493 1.4432166 1.4672587 1.491587 1.5162131 1.5411497 1.5664098
       1.5920076 1.6179578 1.6442765 1.6709804 1.6980875 1.725617 1.7535894 1.7820269 1.8109531
       1.8403933 1.8703751 1.9009281 1.9320842 1.9638784 1.9963485 2.0295357 2.0634852 2.0982465
       2.1338741 2.1704282 2.2079755 2.2465899 2.2863545 2.3273619 2.3697171 2.4135387 2.4589621
       2.5061426 2.5552594 2.6065215 2.660174 2.7165076 2.7758707 2.8386858 2.9054729 2.9768821
       3.053742 3.1371325 3.2285002 3.3298485 3.4440717 3.575588 3.7316663 3.9256378 4.1865954
       4.6035356
    """,
}
"""The positive half of the 2^bits levels of least mean squared error for the unit gaussian: each
level is the mean of its cell, each cell's border the middle of two levels (Max 1960, Lloyd 1982).
Their distortions are 0.36338, 0.11748, 0.0095010, 0.000041185."""

CELLS: Final = 1 << 15
REACH: Final = 8.0
"""Symbols are looked up in `CELLS` even cells over (-REACH, REACH); a cell is 1/35 of the finest
level distance, so that being off by part of a cell adds less than 0.1% to the error."""


@cache
def levels_of(bits: int) -> F32:
    half = np.array(HALVES[bits].split(), np.float32)
    return np.concatenate([-half[::-1], half])


@cache
def _cells(bits: int) -> U8:
    """The symbol of each cell."""
    levels = levels_of(bits).astype(np.float64)
    centres = (np.arange(CELLS) + 0.5) * (2 * REACH / CELLS) - REACH
    return np.searchsorted((levels[1:] + levels[:-1]) / 2, centres).astype(np.uint8)


@dataclass(frozen=True)
class Lloyd:
    """The 2^bits Lloyd-Max levels of a gaussian, times one scale for each chunk.

    With c the levels chosen for the values y: the biased form has the scale <y, c> / |c|^2, of
    least squares; the other |y|^2 / <y, c>, unbiased in expectation over a uniform rotation before
    it (very nearly so over `rotate`), and biased where nothing rotates.

    Error, of gaussian values (rotated ones are): |x - C(x)|^2 = D |x|^2, and D / (1 - D) |x|^2 if
    unbiased, with D = 0.36338, 0.11748, 0.009501, 0.00004119 at 1, 2, 4, 8 bits: relative errors of
    0.603, 0.343, 0.0975, 0.00642. Of any values: the biased form is a contraction.
    Bytes per element: bits / 8, and 4 for each chunk.
    Source: DRIVE, arXiv:2105.08339; EDEN, arXiv:2108.08842, section 3; levels by Lloyd and Max.
    """

    bits: int = 1
    biased: bool = False

    form: ClassVar = "code"

    def __post_init__(self) -> None:
        if self.bits not in HALVES:
            raise ValueError(f"lloyd: bits {self.bits}")

    @property
    def levels(self) -> int:
        return 1 << self.bits

    def side_size(self, data: memoryview, n: int) -> int:
        return 4

    def most_side(self, n: int) -> int:
        return 4

    def count(self, n: int) -> int:
        return n

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        size = rms(x)
        cell = x * (inverse_of(size) * np.float32(CELLS / (2 * REACH)))
        cell += np.float32(CELLS / 2)
        np.clip(cell, 0, CELLS - 1, out=cell)
        symbols = _cells(self.bits).take(cell.astype(np.uint16), mode="wrap")
        chosen = levels_of(self.bits).take(symbols, mode="wrap")
        return fitted(x, chosen, size, biased=self.biased).tobytes(), symbols

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        scale = np.frombuffer(side, "<f4")[0]
        look_up(levels_of(self.bits) * scale, codes, per, out)
