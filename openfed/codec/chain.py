"""A chain of codec stages: chunk -> bytes and back. Which stages exist, and in what order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np

from openfed.codec.base import (
    CHUNK,
    F32,
    LARGEST,
    U8,
    Codes,
    CodeStage,
    Draw,
    FloatStage,
    Stage,
    damaged,
    wrong_length,
)
from openfed.codec.cast import Bf16, Fp16
from openfed.codec.codebook import Kmeans
from openfed.codec.entropy import Entropy
from openfed.codec.grid import Grid
from openfed.codec.lloyd import Lloyd
from openfed.codec.quantize import Quantize
from openfed.codec.rotate import Rotate
from openfed.codec.sparsify import Randomk, Topk
from openfed.codec.symbols import pack, packed_size, per_byte
from openfed.codec.ternary import Ternary
from openfed.codec.zstd import Zstd
from openfed.errors import WireError
from openfed.tensors.record import DTYPES, FLOATING
from openfed.typing import Array, Json

STAGES: Final[Mapping[str, tuple[int, Any]]] = {
    "topk": (1, Topk),
    "randomk": (1, Randomk),
    "rotate": (1, Rotate),
    "fp16": (1, Fp16),
    "bf16": (1, Bf16),
    "quantize": (1, Quantize),
    "lloyd": (1, Lloyd),
    "grid": (1, Grid),
    "ternary": (1, Ternary),
    "kmeans": (1, Kmeans),
    "zstd": (1, Zstd),
    "entropy": (1, Entropy),
}
"""Name -> (version of its bytes, stage). A stage whose bytes change gets another version."""

ORDER: Final = {"float": 0, "code": 1, "bytes": 2}
NOT_FOR_DECODING: Final = ("biased", "rounding")
DECODED_LIMIT: Final = np.float32(2.0**120)
"""No honest chunk decodes to more: `LARGEST`, times what randomk and rotate can make of it."""


@dataclass(frozen=True)
class Chain:
    """Made by `make_chain`. Encoding and decoding hold no state: any thread may use one chain."""

    header: tuple[tuple[str, int, Mapping[str, Json]], ...] = ()
    floats: tuple[FloatStage, ...] = ()
    code: CodeStage | None = None
    entropy: Entropy | None = None
    zstd: Zstd | None = None

    @property
    def lossy(self) -> bool:
        """Whether it is for floating parameters only."""
        return bool(self.floats) or self.code is not None

    def json(self) -> list[Any]:
        """`[[name, version, settings], ...]`: what a header says, canonical."""
        return [[name, version, dict(settings)] for name, version, settings in self.header]

    def exact(self) -> "Chain":
        """Its bytes -> bytes stages alone, for entries that must arrive as they are."""
        return Chain(tuple(entry for entry in self.header if entry[0] == "zstd"), zstd=self.zstd)

    def most(self, count: int, dtype: str) -> int:
        """Most bytes that `encode` gives for `count` elements."""
        if not count:
            return 0
        if not self.lossy:
            return self._most_main(count * DTYPES[dtype].itemsize, DTYPES[dtype].itemsize)
        sides = 0
        for stage in self._lossy_stages():
            sides += stage.most_side(count)
            count = stage.count(count)
        if self.entropy:
            return sides + self.entropy.most(count)
        return sides + self._most_main(self._main_size(count), self._width())

    def encode(self, values: Array, draw: Draw) -> bytes | memoryview:
        """The bytes of one chunk; `values` is 1-D, C order, of any dtype of `DTYPES`.

        Raises: ValueError: more than `CHUNK` elements; in a lossy chain: not floating, not finite,
            or of a magnitude above 2^100.
        """
        if values.size > CHUNK:
            raise ValueError(f"expected at most {CHUNK} elements, got {values.size}")
        if not values.size:
            return b""
        if not self.lossy:
            return self._shrunk(values.view(np.uint8), values.itemsize)
        x, sides = _as_float32(values), []
        for stage in self.floats:
            side, x = stage.forward(x, draw)
            sides.append(side)
        if not self.code:
            return b"".join([*sides, self._shrunk(x.view(np.uint8), 4)])
        side, codes = self.code.encode(x, draw)
        return b"".join([*sides, side, self._coded(codes)])

    def decode(self, data: bytes | memoryview, out: Array, draw: Draw) -> None:
        """Fill `out` (1-D, C order).

        Raises: WireError: W20, W21. Nothing else, whatever the bytes.
        """
        if not out.size and len(data):
            raise wrong_length(0, len(data))
        if not out.size:
            return
        if not self.lossy:
            self._grown(memoryview(data), out.itemsize, out.view(np.uint8))
            if out.dtype == bool and out.view(np.uint8).max() > 1:
                raise damaged("holds bytes that are no booleans")
            return
        direct = out.dtype == np.float32
        x = out if direct else np.empty(out.size, np.float32)
        with np.errstate(all="ignore"):
            self._decode_floats(memoryview(data), x, draw)
            if not np.abs(x).max() <= DECODED_LIMIT:
                raise damaged("holds values that are not finite or absurdly large")
        if not direct:
            _from_float32(x, out)

    def _lossy_stages(self) -> tuple[Stage, ...]:
        return (*self.floats, self.code) if self.code else self.floats

    def _width(self) -> int:
        """Bytes of an element of main, before the bytes -> bytes stages."""
        if self.code is None:
            return 4
        return 2 if self.code.levels > 256 else 1

    def _main_size(self, count: int) -> int:
        if self._width() == 1:
            assert self.code is not None
            return packed_size(count, self.code.levels)
        return count * self._width()

    def _most_main(self, size: int, width: int) -> int:
        return self.zstd.most(size, width) if self.zstd else size

    def _shrunk(self, data: U8, width: int) -> bytes | memoryview:
        return self.zstd.encode(data, width) if self.zstd else data.data

    def _grown(self, data: memoryview, width: int, out: U8) -> None:
        if self.zstd:
            self.zstd.decode(data, width, out)
        elif len(data) != out.size:
            raise wrong_length(out.size, len(data))
        else:
            out[:] = np.frombuffer(data, np.uint8)

    def _coded(self, codes: Codes) -> bytes | memoryview:
        assert self.code is not None
        if self._width() == 2:
            return self._shrunk(codes.view(np.uint8), 2)
        symbols = codes.view(np.uint8)
        if self.entropy:
            return self.entropy.encode(symbols)
        return self._shrunk(pack(symbols, self.code.levels), 1)

    def _decode_floats(self, data: memoryview, out: F32, draw: Draw) -> None:
        """Read the sides from the front, then undo the stages from the last to the first."""
        sides, counts = [], [out.size]
        for stage in self._lossy_stages():
            size = stage.side_size(data, counts[-1])
            if size > len(data):
                raise wrong_length(size, len(data))
            sides.append(data[:size])
            counts.append(stage.count(counts[-1]))
            data = data[size:]
        targets = [out, *(np.empty(count, np.float32) for count in counts[1:][: len(self.floats)])]
        self._decode_main(data, sides[-1], counts[-1], targets[-1])
        for place in reversed(range(len(self.floats))):
            self.floats[place].backward(sides[place], targets[place + 1], targets[place], draw)

    def _decode_main(self, data: memoryview, side: memoryview, count: int, out: F32) -> None:
        if self.code is None:
            self._grown(data, 4, out.view(np.uint8))
        elif self.entropy:
            symbols = self.entropy.decode(data, count)
            self.code.decode(side, symbols, 1, out)
        elif self._width() == 2:
            codes = np.empty(count, np.uint16)
            self._grown(data, 2, codes.view(np.uint8))
            self.code.decode(side, codes, 1, out)
        else:
            packed = np.empty(self._main_size(count), np.uint8)
            self._grown(data, 1, packed)
            self.code.decode(side, packed, per_byte(self.code.levels), out)


def make_chain(stages: Sequence[tuple[str, Mapping[str, Json]]], *, biased: bool = False) -> Chain:
    """The chain of a plan's stages; `biased` is each stage's form under error feedback.

    Raises: ValueError: an unknown stage, a wrong setting, a wrong order.
    """
    made = [(name, _stage(name, settings, biased)) for name, settings in stages]
    _check_order([name for name, _ in made])
    named = dict(made)
    return Chain(
        tuple((name, STAGES[name][0], _settings(stage)) for name, stage in made),
        tuple(stage for _, stage in made if stage.form == "float"),
        next((stage for _, stage in made if stage.form == "code"), None),
        named.get("entropy"),
        named.get("zstd"),
    )


def _stage(name: str, settings: Mapping[str, Json], biased: bool) -> Any:
    if name not in STAGES:
        raise ValueError(f"expected a codec of {[*STAGES]}, got {name!r}")
    kind = STAGES[name][1]
    known = {field.name for field in fields(kind)}
    if not settings.keys() <= known - {"biased"}:
        raise ValueError(f"{name}: settings {dict(settings)}")
    return kind(**settings, **({"biased": biased} if "biased" in known else {}))


def _settings(stage: Any) -> dict[str, Json]:
    names = [field.name for field in fields(stage) if field.name not in NOT_FOR_DECODING]
    return {name: getattr(stage, name) for name in names}


def _check_order(names: Sequence[str]) -> None:
    ranks = [ORDER[STAGES[name][1].form] for name in names]
    coded = [name for name, rank in zip(names, ranks, strict=True) if rank == ORDER["code"]]
    if ranks != sorted(ranks) or len(coded) > 1 or len(set(names)) < len(names):
        raise ValueError(f"expected float, then one code, then bytes stages, each once: {names}")
    if "entropy" in names and ("zstd" in names or not coded or coded[0] in ("fp16", "bf16")):
        raise ValueError(f"entropy codes symbols, and nothing is left to zstd behind it: {names}")


def _as_float32(values: Array) -> F32:
    if values.dtype.name not in FLOATING:
        raise ValueError(f"expected floating values, got {values.dtype.name}")
    with np.errstate(over="ignore"):
        x: F32 = values.astype(np.float32, copy=False)
    if not np.abs(x).max() <= LARGEST:
        raise ValueError(f"expected finite values of at most {LARGEST:g}")
    return x


def _from_float32(x: F32, out: Array) -> None:
    """Into another floating dtype; what is beyond a half becomes the largest half."""
    if out.dtype == np.float16:
        np.clip(x, -65504, 65504, out=x)
    out[:] = x


def read_chain(header: Any, allowed: Collection[Chain]) -> Chain:
    """The one of `allowed` that a header names; raises `WireError` W22 for any other."""
    for chain in allowed:
        if chain.json() == header:
            return chain
    known = " or ".join(str([name for name, *_ in chain.json()]) for chain in allowed)
    raise WireError("W22", f"expected codecs {known} as in the plan, got {str(header)[:200]}")
