"""Levels that fit the chunk: one-dimensional k-means."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from openfed.codec.base import F32, Codes, Draw
from openfed.codec.symbols import look_up

STEPS: Final = 8
"""Iterations of Lloyd: the start is near enough that more gain less than 1% of the error."""

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Kmeans:
    """Each value becomes the nearest of `centers` values, which are the means of what they stand
    for and travel with the chunk.

    Error: |x - C(x)|^2 = |x|^2 - sum of n_j c_j^2: a contraction, in both forms; not unbiased.
    About that of the best quantiser of the chunk's distribution, 4^-bits times a constant.
    Bytes per element: log2(centers) / 8 (in whole symbols to a byte: 3 centers 1/5, 4 1/4, 16 1/2,
    more 1), and 4 for each center in each chunk.
    Source: Lloyd 1982; as a codebook for weights, Han et al., arXiv:1510.00149, section 3; start by
    the point density of Panter and Dite 1951.
    """

    centers: int = 16

    form: ClassVar = "code"

    def __post_init__(self) -> None:
        if not 2 <= self.centers <= 256:
            raise ValueError(f"kmeans: centers {self.centers}")

    @property
    def levels(self) -> int:
        return self.centers

    def side_size(self, data: memoryview, n: int) -> int:
        return self.most_side(n)

    def most_side(self, n: int) -> int:
        return 4 * min(self.centers, n)

    def count(self, n: int) -> int:
        return n

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        order = np.argsort(x)
        rising = x[order].astype(np.float64)
        sums = np.concatenate([[0.0], np.cumsum(rising)])
        centers = _start(rising, min(self.centers, x.size))
        for _ in range(STEPS):
            borders = _borders(rising, centers)
            centers = _means(sums, borders, centers)
        symbols = np.empty(x.size, np.uint8)
        symbols[order] = np.repeat(np.arange(centers.size, dtype=np.uint8), np.diff(borders))
        return centers.astype("<f4").tobytes(), symbols

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        centers = np.zeros(self.centers, np.float32)
        centers[: len(side) // 4] = np.frombuffer(side, "<f4")
        look_up(centers, codes, per, out)


def _start(rising: F64, count: int) -> F64:
    """Centers with the density of the cube root of the values' density."""
    at = np.linspace(0, rising.size - 1, min(rising.size, 1024))
    marks = rising[at.astype(np.int64)]
    mass = np.concatenate([[0.0], np.cumsum(np.diff(marks) ** (2 / 3))])
    if mass[-1] == 0:
        return np.full(count, rising[0])
    start: F64 = np.interp((np.arange(count) + 0.5) / count * mass[-1], mass, marks)
    return start


def _borders(rising: F64, centers: F64) -> NDArray[np.int64]:
    """(centers + 1,): where in the ascending values each center's share begins, and the end."""
    inner = np.searchsorted(rising, (centers[1:] + centers[:-1]) / 2)
    return np.concatenate([[0], inner, [rising.size]])


def _means(sums: F64, borders: NDArray[np.int64], centers: F64) -> F64:
    """The mean of each share; a center without one stays."""
    sizes = np.diff(borders)
    return np.divide(np.diff(sums[borders]), sizes, out=centers.copy(), where=sizes > 0)
