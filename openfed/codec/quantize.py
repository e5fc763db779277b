"""Evenly spaced levels with one scale for each group of elements."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from openfed.codec.base import F32, SMALLEST, Codes, Draw
from openfed.codec.symbols import look_up


@dataclass(frozen=True)
class Quantize:
    """2^bits - 1 levels, evenly from -peak to peak of each group; one bit: the sign.

    With s the distance of two levels, peak / (2^(bits-1) - 1), and m the mean of |x| in the group:

        bits 8, 4, 2  nearest     |x - C(x)| <= s / 2       a contraction
        bits 8, 4, 2  stochastic  |x - C(x)| <= s           unbiased
        bits 1        nearest     sum of squares falls by group * m^2: a contraction, levels +-m
        bits 1        stochastic  |x - C(x)| <= 2 peak      unbiased, levels +-peak

    Unbiased to 2^-16 of s: noise has 16 bits. A group whose peak is below 2^-100 becomes 0. Bytes
    per element: 1, 1/2, 1/5 (three levels, five to a byte), 1/8, and 4 / group for its scale.
    Source: levels by the largest magnitude, Dettmers, arXiv:1511.04561; stochastic rounding, QSGD,
    arXiv:1610.02132, section 3.1 (with the largest magnitude for the norm), and TernGrad,
    arXiv:1705.07878 (2 bits: -1, 0, 1); sign times mean, EF-signSGD, arXiv:1901.09847, section 4.
    """

    bits: int = 8
    rounding: str | None = None
    group: int = 1024
    biased: bool = False

    form: ClassVar = "code"

    def __post_init__(self) -> None:
        if self.bits not in (8, 4, 2, 1) or not 16 <= self.group <= 65536:
            raise ValueError(f"quantize: bits {self.bits}, group {self.group}")
        if self.rounding not in (None, "nearest", "stochastic"):
            raise ValueError(f"quantize: rounding {self.rounding}")

    @property
    def nearest(self) -> bool:
        return self.biased if self.rounding is None else self.rounding == "nearest"

    @property
    def levels(self) -> int:
        return 2 if self.bits == 1 else (1 << self.bits) - 1

    def side_size(self, data: memoryview, n: int) -> int:
        return self.most_side(n)

    def most_side(self, n: int) -> int:
        return 4 * -(-n // self.group)

    def count(self, n: int) -> int:
        return n

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        groups = _grouped(x, self.group)
        scale = self._scale(groups, x.size)
        usable = scale >= SMALLEST
        scale = np.where(usable, scale, 0).astype(np.float32)
        inverse = np.divide(1, scale, out=np.zeros_like(scale), where=usable)
        if self.bits == 1:
            inverse *= np.float32(0.5)
        ratio = groups * inverse[:, None]
        flat = ratio.reshape(-1)[: x.size]
        flat += np.float32((self.levels - 1) / 2)
        flat += np.float32(0.5) if self.nearest else _noise(draw, x.size)
        np.clip(flat, 0, self.levels - 1, out=flat)
        return scale.tobytes(), flat.astype(np.uint8)

    def _scale(self, groups: F32, n: int) -> F32:
        """Of each group what its symbols are multiples of."""
        size = np.abs(groups)
        if self.bits == 1 and self.nearest:
            counts = np.full(len(groups), self.group)
            counts[-1] = n - self.group * (len(groups) - 1)
            mean: F32 = (size.sum(axis=1, dtype=np.float64) / counts).astype(np.float32)
            return mean
        peak: F32 = size.max(axis=1)
        if self.bits > 1:
            peak /= np.float32(self.levels // 2)
        return peak

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        scale = np.frombuffer(side, "<f4")
        look_up(self._table(), codes, per, out)
        whole = out.size // self.group
        inside = out[: whole * self.group].reshape(whole, self.group)
        inside *= scale[:whole, None]
        if whole < scale.size:
            out[whole * self.group :] *= scale[whole]

    def _table(self) -> F32:
        if self.bits == 1:
            return np.array([-1, 1], np.float32)
        return np.arange(self.levels, dtype=np.float32) - np.float32(self.levels // 2)


def _grouped(x: F32, group: int) -> F32:
    """(groups, group), the last one filled up with zeros."""
    if x.size % group:
        x = np.concatenate([x, np.zeros(-x.size % group, np.float32)])
    return x.reshape(-1, group)


def _noise(draw: Draw, n: int) -> F32:
    """Uniform in (0, 1), the centres of 2^16 cells."""
    noise = draw.bits("quantize", 2 * n).view("<u2").astype(np.float32)
    noise *= np.float32(2.0**-16)
    noise += np.float32(2.0**-17)
    return noise
