"""Symbols of a small alphabet as bytes: as many to a byte as fit, first symbol lowest.

`per` symbols of an alphabet of L are one byte, the number s1 + s2 L + s3 L^2 ...: 8 of 2, 5 of 3,
4 of 4, 2 of 16, 1 of 255. So three levels cost 1.6 bits, not 2.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from openfed.codec.base import F32, U8, damaged


def per_byte(levels: int) -> int:
    """How many symbols of an alphabet fit into a byte; `levels` is 2..256."""
    per = 1
    while levels ** (per + 1) <= 256:
        per += 1
    return per


def packed_size(count: int, levels: int) -> int:
    return -(-count // per_byte(levels))


def pack(symbols: U8, levels: int) -> U8:
    per = per_byte(levels)
    if per == 1:
        return symbols
    if levels == 2:
        return np.packbits(symbols, bitorder="little")
    size = packed_size(symbols.size, levels)
    digits = np.zeros((size, per), np.uint8)
    digits.reshape(-1)[: symbols.size] = symbols
    packed = digits[:, per - 1].copy()
    for place in reversed(range(per - 1)):
        packed *= np.uint8(levels)
        packed += digits[:, place]
    return packed


@cache
def _digits(levels: int, per: int) -> NDArray[np.intp]:
    """(levels ** per, per): the symbols that each byte stands for."""
    numbers = np.arange(levels**per)
    return np.stack([numbers // levels**place % levels for place in range(per)], axis=1)


def look_up(table: F32, codes: U8, per: int, out: F32) -> None:
    """Fill `out` with `table[symbol]` of each symbol; `codes` holds `per` of them a byte.

    Raises: WireError: a byte that stands for no symbols of the table.
    """
    wide = table[_digits(table.size, per)]
    if codes.size and int(codes.max()) >= len(wide):
        raise damaged("holds a symbol that its codec does not have")
    whole = out.size // per
    rows = wide.view(np.dtype((np.void, 4 * per))).reshape(-1)
    out[: whole * per] = rows.take(codes[:whole], mode="clip").view(np.float32)
    if whole * per < out.size:
        out[whole * per :] = wide[codes[whole], : out.size - whole * per]
