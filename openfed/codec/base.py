"""What every codec shares: the chunk, public randomness, the contracts of a stage.

A chain (`chain.py`) codes a tensor in chunks of `CHUNK` elements. Its stages are, in this order,
any number of float -> float, at most one float -> code, and bytes -> bytes. Where a chunk lies:

    side of stage 1 | side of stage 2 | ... | main

A *side* is what a stage needs beside the values that it hands on (a scale, positions); *main* is
what the last stage left. Decoding gives the same bits on every machine: it uses elementwise
float32 arithmetic, look-ups and integers only, never a sum whose order a processor may choose.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from openfed.errors import WireError
from openfed.tensors.frame import CHUNK as CHUNK

LARGEST: Final = 2.0**100
"""A lossy chain refuses greater magnitudes, so that no rotation of them overflows."""

SMALLEST: Final = 2.0**-100
"""Scales below it are written as 0, and what they would scale becomes 0: no denormal arithmetic."""

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
Codes = NDArray[Any]
"""uint8 symbols, or the uint16 of a cast."""
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Draw:
    """Public randomness of one chunk: the same bits at every node, from numpy's Philox.

    Only raw integers are taken from it: numpy promises those to stay as they are, and does not
    promise it of its distributions.
    """

    seed: int
    entry: int
    chunk: int

    def bits(self, purpose: str, count: int) -> U8:
        """`count` random bytes; the same whenever they are asked for."""
        name = f"{self.seed}/{self.entry}/{self.chunk}/{purpose}".encode()
        key = int.from_bytes(hashlib.sha256(name).digest()[:16], "little")
        words = np.random.Philox(key=key).random_raw(-(-count // 8))
        return np.asarray(words, "<u8").view(np.uint8)[:count]


class Stage(Protocol):
    """What every lossy stage says of the bytes it puts in front."""

    def side_size(self, data: memoryview, n: int) -> int:
        """How many bytes at the front of `data` are the side of a chunk of `n` values. May be
        more than `data` has; raises `WireError` where the bytes say nonsense."""
        ...

    def most_side(self, n: int) -> int:
        """Most bytes of a side."""
        ...

    def count(self, n: int) -> int:
        """How many values or symbols it makes of `n` values."""
        ...


class FloatStage(Stage, Protocol):
    """float -> float."""

    def forward(self, x: F32, draw: Draw) -> tuple[bytes, F32]:
        """(side, `count(n)` values); does not change `x`."""
        ...

    def backward(self, side: memoryview, y: F32, out: F32, draw: Draw) -> None:
        """Fill `out` from what `forward` gave; may use `y` as scratch."""
        ...


class CodeStage(Stage, Protocol):
    """float -> code. Symbols are 0..levels-1; `levels` of 1 << 16 are casts to 16-bit floats."""

    @property
    def levels(self) -> int: ...

    def encode(self, x: F32, draw: Draw) -> tuple[bytes, Codes]:
        """(side, `count(n)` symbols); does not change `x`. uint16 for casts, else uint8."""
        ...

    def decode(self, side: memoryview, codes: Codes, per: int, out: F32) -> None:
        """Fill `out`. `codes` holds `per` symbols a byte (`symbols.py`), all within `levels`."""
        ...


def damaged(what: str) -> WireError:
    return WireError("W20", f"a compressed chunk {what}")


def wrong_length(expected: int, got: int) -> WireError:
    return WireError("W21", f"expected {expected} bytes of a compressed chunk, got {got}")
