"""Few of the values: the largest, or random ones."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from openfed.codec.base import F32, Draw, damaged

Positions = NDArray[np.int64]


def kept(fraction: float, n: int) -> int:
    """How many of n values a fraction is: at least one, if there is one."""
    return min(n, max(1, math.ceil(fraction * n))) if n else 0


def check_fraction(fraction: float) -> None:
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}")


def largest(x: F32, k: int) -> Positions:
    """The positions of the k greatest magnitudes, ascending."""
    if k == x.size:
        return np.arange(k)
    return np.sort(np.argpartition(np.abs(x), x.size - k)[x.size - k :])


# Positions are coded as gaps (how many are left out before each) by the code of Rice with `low`
# low bits, bit by bit of all gaps together:
#
#     1 byte    low, 0..15
#     2 bytes   size of the unary part in bytes
#     bits      for each low bit, that bit of all gaps; each plane in whole bytes
#     bits      for each gap, gap >> low zeros and a one
#
# Source: Golomb 1966, Rice 1979; STC, arXiv:1903.02891, section V-C, for positions of updates.

HEAD = 3


def write_positions(positions: Positions, n: int) -> bytes:
    k = positions.size
    gaps = np.diff(positions, prepend=-1) - 1
    low = _low_bits(k, n)
    ends = np.cumsum((gaps >> low) + 1)
    unary = np.zeros(int(ends[-1]), np.uint8)
    unary[ends - 1] = 1
    planes = [np.packbits(gaps >> place & 1).tobytes() for place in range(low)]
    tail = np.packbits(unary).tobytes()
    return b"".join([bytes([low]), len(tail).to_bytes(2, "little"), *planes, tail])


def _low_bits(k: int, n: int) -> int:
    """The parameter of Rice that suits k of n at random (Kiely 2004, section 3)."""
    mean = (n - k) / k
    return max(0, min(15, math.floor(math.log2(max(mean, 0.5) * math.log(2) + 1e-9)) + 1))


def positions_size(data: memoryview, k: int, n: int) -> int:
    """Bytes of the positions at the front of `data`; raises `WireError`."""
    if len(data) < HEAD:
        return HEAD
    low, tail = data[0], int.from_bytes(data[1:3], "little")
    if low > 15 or tail > _most_unary(k, n, low):
        raise damaged(f"holds gaps in {low} low bits and {tail} bytes")
    return HEAD + low * -(-k // 8) + tail


def most_positions(k: int, n: int) -> int:
    low = _low_bits(k, n)
    return HEAD + low * -(-k // 8) + _most_unary(k, n, low)


def _most_unary(k: int, n: int, low: int) -> int:
    """Bytes of k ones and as many zeros as n - k gaps can give."""
    return -(-(k + ((n - k) >> low)) // 8)


def read_positions(data: memoryview, k: int, n: int) -> Positions:
    """The k ascending positions below n; raises `WireError`."""
    low, plane = data[0], -(-k // 8)
    bits = np.frombuffer(data[HEAD:], np.uint8)
    ends = np.flatnonzero(np.unpackbits(bits[low * plane :]))
    if ends.size != k:
        raise damaged(f"holds {ends.size} positions, expected {k}")
    gaps = (np.diff(ends, prepend=-1) - 1) << low
    for place in range(low):
        row = bits[place * plane : (place + 1) * plane]
        gaps |= np.unpackbits(row, count=k).astype(np.int64) << place
    positions = np.cumsum(gaps + 1) - 1
    if positions[-1] >= n:
        raise damaged(f"holds position {positions[-1]} of {n}")
    return positions


@dataclass(frozen=True)
class Topk:
    """The ceil(fraction * n) values of greatest magnitude of each chunk; the others become 0.

    Error: |x - C(x)|^2 <= (1 - k/n) |x|^2: a contraction, in both forms; not unbiased. Bytes per
    element: 4 fraction (less with a code stage behind it), and about fraction (log2(1 / fraction)
    + 1.5) / 8 for the positions: 1.1% of float32's bytes at 1%, of which a quarter are positions.
    Source: Aji and Heafield, arXiv:1704.05021; with feedback, Stich, arXiv:1809.07599.
    """

    fraction: float = 0.01

    form: ClassVar = "float"

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    def side_size(self, data: memoryview, n: int) -> int:
        return positions_size(data, self.count(n), n)

    def most_side(self, n: int) -> int:
        return most_positions(self.count(n), n)

    def count(self, n: int) -> int:
        return kept(self.fraction, n)

    def forward(self, x: F32, draw: Draw) -> tuple[bytes, F32]:
        positions = largest(x, self.count(x.size))
        return write_positions(positions, x.size), x[positions]

    def backward(self, side: memoryview, y: F32, out: F32, draw: Draw) -> None:
        out[:] = 0
        out[read_positions(side, y.size, out.size)] = y


@dataclass(frozen=True)
class Randomk:
    """ceil(fraction * n) values of each chunk at random positions; the others become 0.

    Unbiased: what is kept is sent times n / k, with E |x - C(x)|^2 = (n/k - 1) |x|^2. Biased form:
    as it is, E |x - C(x)|^2 = (1 - k/n) |x|^2, and never more than |x|^2. Bytes per element: 4
    fraction (less with a code stage behind it): positions come from public randomness.
    Source: Konecny et al., arXiv:1610.05492, section 3; Stich, arXiv:1809.07599.
    """

    fraction: float = 0.01
    biased: bool = False

    form: ClassVar = "float"

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    def side_size(self, data: memoryview, n: int) -> int:
        return 0

    def most_side(self, n: int) -> int:
        return 0

    def count(self, n: int) -> int:
        return kept(self.fraction, n)

    def forward(self, x: F32, draw: Draw) -> tuple[bytes, F32]:
        k = self.count(x.size)
        y = x[_drawn(draw, k, x.size)]
        return b"", y if self.biased else y * np.float32(x.size / k)

    def backward(self, side: memoryview, y: F32, out: F32, draw: Draw) -> None:
        out[:] = 0
        out[_drawn(draw, y.size, out.size)] = y


def _drawn(draw: Draw, k: int, n: int) -> Positions:
    """k of n positions, ascending: those with the smallest random keys. Keys end in their
    position, so that no two are equal and every node chooses alike."""
    keys = draw.bits("randomk", 8 * n).view("<u8") & np.uint64(~0xFFFF & (1 << 64) - 1)
    keys |= np.arange(n, dtype=np.uint64)
    smallest = np.partition(keys, k - 1)[:k] & np.uint64(0xFFFF)
    return np.sort(smallest.astype(np.int64))
