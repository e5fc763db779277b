"""Symbols in as many bits as their frequencies are worth."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import constriction
import numpy as np
from numpy.typing import NDArray

from openfed.codec.base import U8, damaged, wrong_length

Counts = NDArray[np.int64]


def _sixteenth_power(power: int) -> int:
    """2^(8 + power / 16) in integers: four square roots, rounded down."""
    value = 1 << (power + 128)
    for _ in range(4):
        value = math.isqrt(value)
    return value


WEIGHTS: Final = np.array([0, *map(_sixteenth_power, range(255))], np.float64)
"""(256,): what the byte that describes a count means. 0 is never; each further one is 2^(1/16)
more, so that a frequency is off by 2.2% at most (8% for a symbol that is nearly all of the chunk),
and the code by 0.0004 bit."""

SLACK: Final = 0.02
"""Bits per symbol that may be given away for coding low bits as they are, which is fast."""

PAIRED: Final = 32
"""Up to so many high parts are coded two at a time: a fifth faster to decode."""

HEAD: Final = 4


@dataclass(frozen=True)
class Entropy:
    """Symbols coded by asymmetric numeral systems, by their frequencies in the chunk.

    Where neighbouring symbols are about equally frequent, as on a fine grid, their low bits carry
    nothing to gain: as many are kept as they are as cost at most 0.02 bit. The coder sees the rest.

        1 byte    low: how many low bits are kept apart, 0..7
        1 byte    first: the smallest high part
        2 bytes   size: how many high parts from there on, 2..256
        1 byte    for each of them: its weight, an index of `WEIGHTS`
        bits      for each low bit, that bit of all symbols, in whole bytes
        words     the coder's, 4 bytes each; it codes pairs of high parts, the first times `size`
                  plus the second, if size <= 32 (0 is put behind an odd number), else one by one

    Exact. Bytes per element: the entropy of the symbols / 8, within 0.02 bit, and 30 to 150 bytes
    for each chunk.
    Source: ANS, Duda, arXiv:1311.2540; the coder is constriction's, Bamler, arXiv:2201.01741.
    """

    form: ClassVar = "bytes"

    def most(self, count: int) -> int:
        """Most bytes of `count` symbols: 8 bits each, what `WEIGHTS` and `SLACK` give away, below
        1/64 of that, and the coder's state."""
        return HEAD + 256 + count + count // 64 + 24

    def encode(self, symbols: U8) -> bytes:
        low, counts = _split(np.bincount(symbols, minlength=256))
        seen = np.flatnonzero(counts)
        first = min(int(seen[0]), counts.size - 2)
        weights = _described(counts[first : max(int(seen[-1]), first + 1) + 1])
        high = (symbols >> np.uint8(low)).astype(np.int32)
        high -= np.int32(first)
        if weights.size <= PAIRED:
            high = _paired(high, weights.size)
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(high, _model(weights))
        words = coder.get_compressed().astype("<u4")
        head = bytes([low, first]) + weights.size.to_bytes(2, "little")
        return b"".join([head, weights.tobytes(), *_planes(symbols, low), words.tobytes()])

    def decode(self, data: memoryview, count: int) -> U8:
        """The symbols of a chunk of `count`, one a byte. Raises `WireError`."""
        low, first, size = _head(data)
        plane = -(-count // 8)
        body = HEAD + size + low * plane
        if len(data) < body or (len(data) - body) % 4:
            raise wrong_length(body, len(data))
        weights = np.frombuffer(data[HEAD : HEAD + size], np.uint8)
        words = np.frombuffer(data[body:], "<u4").astype(np.uint32)
        table = ((np.arange(size) + first) << low).astype(np.uint8)
        if size <= PAIRED:
            pairs = np.stack([np.repeat(table, size), np.tile(table, size)], axis=1)
            coded = _decoded(words, weights, (count + 1) // 2)
            symbols = pairs.view(np.uint16).reshape(-1).take(coded, mode="clip").view(np.uint8)
        else:
            symbols = table.take(_decoded(words, weights, count), mode="clip")
        symbols = symbols[:count]
        for place in range(low):
            bits = np.frombuffer(data, np.uint8, plane, HEAD + size + place * plane)
            symbols |= np.unpackbits(bits, count=count, bitorder="little") << np.uint8(place)
        return symbols


def _head(data: memoryview) -> tuple[int, int, int]:
    """(low, first, size), in range."""
    if len(data) < HEAD:
        raise wrong_length(HEAD, len(data))
    low, first, size = data[0], data[1], int.from_bytes(data[2:4], "little")
    if low > 7 or size < 2 or (first + size) << low > 256:
        raise damaged("holds a table of symbols that no codec has")
    return low, first, size


def _split(counts: Counts) -> tuple[int, Counts]:
    """How many low bits to keep apart, and the counts of the high parts."""
    total = int(counts.sum())
    limit = _bits(counts) + SLACK * total
    chosen = 0, counts
    for low in range(1, 8):
        high = counts.reshape(-1, 1 << low).sum(axis=1)
        if _bits(high) + low * total > limit:
            break
        chosen = low, high
    return chosen


def _bits(counts: Counts) -> float:
    """Bits of an ideal code of symbols with these counts."""
    some = counts[counts > 0]
    return float((some * np.log2(some.sum() / some)).sum())


def _described(counts: Counts) -> U8:
    """The nearest weight of each count; a symbol that occurs has at least the least weight."""
    middles = np.sqrt(WEIGHTS[1:-1] * WEIGHTS[2:])
    nearest = np.searchsorted(middles, 256.0 * counts) + 1
    return np.where(counts > 0, nearest, 0).astype(np.uint8)


def _paired(high: NDArray[np.int32], size: int) -> NDArray[np.int32]:
    if high.size % 2:
        high = np.append(high, np.int32(0))
    return high[::2] * np.int32(size) + high[1::2]


def _planes(symbols: U8, low: int) -> list[bytes]:
    bits = (symbols & np.uint8(1 << place) for place in range(low))
    return [np.packbits(plane, bitorder="little").tobytes() for plane in bits]


def _model(weights: U8) -> Any:
    """Weights are integers whose sums, also of pairs, stay below 2^53, so that floating arithmetic
    on them is exact and the model the same at every node."""
    alone = WEIGHTS[weights]
    both = np.outer(alone, alone).reshape(-1) if weights.size <= PAIRED else alone
    return constriction.stream.model.Categorical(both, perfect=False)


def _decoded(words: NDArray[np.uint32], weights: U8, count: int) -> NDArray[np.int32]:
    try:
        coder = constriction.stream.stack.AnsCoder(words)
        coded: NDArray[np.int32] = coder.decode(_model(weights), count)
    except ValueError as error:
        raise damaged(f"cannot be decoded: {error}") from None
    if not coder.is_empty():
        raise damaged("holds more than its symbols")
    return coded
