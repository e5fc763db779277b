"""Even steps over the whole chunk, for an entropy coder behind it."""

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from openfed.codec.base import F32, Codes, Draw
from openfed.codec.fit import fitted, inverse_of, rms
from openfed.codec.symbols import look_up

ZERO: Final = 127
"""The symbol of 0; symbols are 0..254."""


@dataclass(frozen=True)
class Grid:
    """Rounding to multiples of a step: `step` times the chunk's root mean square, and at least
    1/127 of its largest magnitude, so that nothing is clipped.

    Values come back not from the middle of their step but from nearer to zero by `pull` steps,
    where the mean of what was rounded lies, times a scale as in `lloyd`: of least squares (biased,
    a contraction), else such that <y, C(y)> = |y|^2, unbiased under a uniform rotation.

    Error: |x - C(x)| <= (1/2 + pull) step with 0 <= pull <= 1/2, before that scale, which is
    nearly 1. For entropy H of the symbols, gaussian values and `entropy` behind it,
    |x - C(x)|^2 / |x|^2 is about 4^(0.25 - H) (Gish and Pierce 1968): 1/4 bit above the bound of
    rate and distortion. Bytes per element: 1, behind `entropy` H / 8; and 8 for each chunk.
    Source: entropy-coded uniform quantiser, Gish and Pierce, IEEE Trans. IT 14, 1968.
    """

    step: float = 1.0
    biased: bool = False

    form: ClassVar = "code"
    levels: ClassVar = 255

    def __post_init__(self) -> None:
        if not 0.05 <= self.step <= 4:
            raise ValueError(f"grid: step {self.step}")

    def side_size(self, data: memoryview, n: int) -> int:
        return 8

    def most_side(self, n: int) -> int:
        return 8

    def count(self, n: int) -> int:
        return n

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        size = rms(x)
        step = max(self.step * size, float(np.abs(x).max()) / ZERO)
        scaled = x * inverse_of(step)
        symbols = (scaled + np.float32(ZERO + 0.5)).astype(np.uint8)
        np.minimum(symbols, np.uint8(2 * ZERO), out=symbols)
        pull = _pull(scaled, symbols)
        chosen = _values(pull).take(symbols, mode="wrap")
        scale = fitted(x, chosen, size, biased=self.biased)
        return np.array([scale, pull], "<f4").tobytes(), symbols

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        scale, pull = np.frombuffer(side, "<f4")
        look_up(_values(pull) * scale, codes, per, out)


def _pull(scaled: F32, symbols: Codes) -> np.float32:
    """How far, on average, what was rounded to a step other than 0 lies nearer to 0 than it."""
    steps = symbols.astype(np.float32)
    steps -= np.float32(ZERO)
    others = np.count_nonzero(steps)
    distance = float(np.abs(steps).sum() - np.einsum("i,i->", np.sign(steps), scaled))
    return np.float32(min(max(distance / others, 0.0), 0.5)) if others else np.float32(0)


def _values(pull: np.float32) -> F32:
    """(255,): what each symbol stands for, in steps."""
    steps = np.arange(-ZERO, ZERO + 1, dtype=np.float32)
    steps -= np.sign(steps) * pull
    return steps
