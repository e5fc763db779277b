"""Shorter floats: IEEE half precision and bfloat16."""

from dataclasses import dataclass
from typing import ClassVar, Final

import ml_dtypes
import numpy as np

from openfed.codec.base import F32, Codes, Draw

BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)
LARGEST_HALF: Final = np.float32(65504.0)


@dataclass(frozen=True)
class Fp16:
    """Half precision, to the nearest, ties to even.

    Error: |x - C(x)| <= max(2^-11 |x|, 2^-25) up to 65504; greater magnitudes become 65504.
    Not unbiased (rounding is deterministic); a contraction. 2 bytes per element.
    Source: IEEE 754-2008, binary16.
    """

    form: ClassVar = "code"
    levels: ClassVar = 1 << 16

    def side_size(self, data: memoryview, n: int) -> int:
        return 0

    def most_side(self, n: int) -> int:
        return 0

    def count(self, n: int) -> int:
        return n

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        kept = np.clip(x, -LARGEST_HALF, LARGEST_HALF)
        return b"", kept.astype(np.float16).view(np.uint16)

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        out[:] = codes.view(np.float16)


@dataclass(frozen=True)
class Bf16:
    """The upper half of a float32, rounded to the nearest, ties to even.

    Error: |x - C(x)| <= 2^-8 |x|, or 2^-134 for denormals. Not unbiased (rounding is
    deterministic); a contraction. 2 bytes per element.
    Source: the format of TensorFlow, arXiv:1905.12322, section 2.
    """

    form: ClassVar = "code"
    levels: ClassVar = 1 << 16

    def side_size(self, data: memoryview, n: int) -> int:
        return 0

    def most_side(self, n: int) -> int:
        return 0

    def count(self, n: int) -> int:
        return n

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        return b"", x.astype(BFLOAT16).view(np.uint16)

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        out[:] = codes.view(BFLOAT16)
