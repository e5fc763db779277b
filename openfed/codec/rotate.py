"""A random rotation: whatever the values were, each becomes nearly gaussian."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from openfed.codec.base import F32, U8, Draw

SIGNS: Final[F32] = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1).astype(np.float32)
"""(256, 8): each byte of randomness as eight signs."""


@dataclass(frozen=True)
class Rotate:
    """Random signs, then an orthonormal Hadamard transform.

    Of n values the first p and then the last p are transformed, p the largest power of two up to
    n: the two windows cover all, nothing is padded. Norms and inner products stay; a quantiser
    after it meets values that are nearly gaussian, and its errors are spread over all elements.

    Error: by itself only rounding, |x - C(x)| <= 2^-18 |x| in norm, and in both forms the same. No
    bytes: the signs come from public randomness. 4 bytes per element go on to the next stage.
    Source: DRIVE, arXiv:2105.08339, section 6; EDEN, arXiv:2108.08842. The windows are ours.
    """

    form: ClassVar = "float"

    def side_size(self, data: memoryview, n: int) -> int:
        return 0

    def most_side(self, n: int) -> int:
        return 0

    def count(self, n: int) -> int:
        return n

    def forward(self, x: F32, draw: Draw) -> tuple[bytes, F32]:
        y = x.copy()
        for window, signs in _windows(y, draw):
            window[:] = _transform(_signed(window, signs), _digits(window.size))
        return b"", y

    def backward(self, side: memoryview, y: F32, out: F32, draw: Draw) -> None:
        out[:] = y
        for window, signs in reversed(_windows(out, draw)):
            turned = _transform(_aligned(window), _digits(window.size)[::-1])
            window[:] = _signed(turned, signs)


def _windows(y: F32, draw: Draw) -> list[tuple[F32, U8]]:
    """Views of `y` with the random bits of their signs, in the order of `forward`."""
    n = y.size
    p = 1 << (n.bit_length() - 1)
    size = -(-p // 8)
    bits = draw.bits("rotate", 2 * size)
    first = (y[:p], bits[:size])
    return [first] if n == p else [first, (y[n - p :], bits[size:])]


def _signed(x: F32, signs: U8) -> F32:
    """The values times random signs and 1 / sqrt(p), in fresh memory."""
    factors = (SIGNS * np.float32(x.size**-0.5)).take(signs, axis=0, mode="clip")
    signed = _empty(x.size)
    np.multiply(x, factors.reshape(-1)[: x.size], out=signed)
    return signed


def _empty(n: int) -> F32:
    """Scratch that starts at a cache line: sums of two arrays are twice as fast."""
    room = np.empty(n + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    return room[start : start + n]


def _aligned(x: F32) -> F32:
    copy = _empty(x.size)
    copy[:] = x
    return copy


def _digits(p: int) -> tuple[int, int, int, int]:
    """p, a power of two, as a product of four, nearly equal."""
    power = p.bit_length() - 1
    a, b, c, d = (1 << (power + extra) // 4 for extra in (3, 2, 1, 0))
    return a, b, c, d


def _transform(a: F32, digits: tuple[int, int, int, int]) -> F32:
    """The transform, unscaled, of p values as an array of shape `digits`: along each axis in turn,
    which is brought to the front for it, where sums run over long rows. The result has its axes in
    reverse order, so that the same with reversed digits undoes it. Only sums and differences of
    two elements: the same bits on every machine. Uses `a` as scratch."""
    b = _empty(a.size)
    w, x, y, z = digits
    a, b = _butterflies(a, b, w)
    a, b = _moved(a.reshape(w, x, y * z).swapaxes(0, 1), b), a
    a, b = _butterflies(a, b, x)
    a, b = _moved(a.reshape(x * w, y * z).T, b), a
    a, b = _butterflies(a, b, y)
    a, b = _moved(a.reshape(y, z, x * w).swapaxes(0, 1), b), a
    return _butterflies(a, b, z)[0]


def _moved(view: F32, into: F32) -> F32:
    into.reshape(view.shape)[...] = view
    return into


def _butterflies(a: F32, b: F32, rows: int) -> tuple[F32, F32]:
    """The transform along the first axis of `rows`. Uses both in turn; (result, scratch)."""
    half = 1
    while half < rows:
        pairs = (rows // (2 * half), 2, half * (a.size // rows))
        old, new = a.reshape(pairs), b.reshape(pairs)
        np.add(old[:, 0], old[:, 1], out=new[:, 0])
        np.subtract(old[:, 0], old[:, 1], out=new[:, 1])
        a, b = b, a
        half *= 2
    return a, b
