"""What encoders measure of a chunk. Decoders never call this: sums have no fixed order."""

import numpy as np

from openfed.codec.base import F32, SMALLEST


def inner(x: F32, y: F32) -> float:
    """The inner product, in float64: squares of up to 2^100 do not overflow."""
    return float(np.einsum("i,i->", x, y, dtype=np.float64))


def rms(x: F32) -> float:
    return float((inner(x, x) / x.size) ** 0.5)


def inverse_of(scale: float) -> np.float32:
    """1 / scale, and 0 for one that counts as zero."""
    return np.float32(1 / scale if scale >= SMALLEST else 0)


def fitted(y: F32, chosen: F32, size: float, *, biased: bool) -> np.float32:
    """The scale at which `chosen` stands for `y`, of root mean square `size`: of least squares if
    biased, else such that <y, scale * chosen> = |y|^2, which makes a rotated quantiser unbiased
    (EDEN, arXiv:2108.08842, section 3)."""
    common = inner(y, chosen)
    if size < SMALLEST or common <= 0:
        return np.float32(0)
    return np.float32(common / inner(chosen, chosen) if biased else size**2 * y.size / common)
