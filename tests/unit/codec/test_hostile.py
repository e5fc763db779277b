"""Whatever the bytes are: a value within the limit, or a WireError; never more memory than that."""

import tracemalloc

import numpy as np
import pytest
import zstandard

from openfed.codec.base import CHUNK, Draw
from openfed.codec.chain import make_chain
from openfed.errors import WireError

DRAW = Draw(seed=7, entry=3, chunk=1)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bits, bytes replaced, cut, longer, spliced, or nothing of it left."""
    changed = bytearray(data)
    way = rng.integers(6)
    if way == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 6)):
            changed[at] = rng.integers(256)
    elif way == 1:
        for at in rng.integers(0, min(len(data), 12), 2):
            changed[at] ^= 1 << int(rng.integers(8))
    elif way == 2:
        del changed[int(rng.integers(len(data))) :]
    elif way == 3:
        changed += rng.bytes(int(rng.integers(1, 9)))
    elif way == 4:
        at, length = rng.integers(0, len(data), 2)
        changed[at : at + length] = rng.bytes(int(rng.integers(0, 40)))
    else:
        changed = bytearray(rng.bytes(int(rng.integers(0, 2 * len(data)))))
    return bytes(changed)


def attack(stages, times, seed):
    """(refused, decoded)"""
    rng = np.random.default_rng(seed)
    chain = make_chain(stages)
    refused = 0
    for _ in range(times):
        n = int(rng.integers(1, 300 if rng.random() < 0.95 else 6000))
        x = (rng.standard_t(2, n) * 10.0 ** rng.integers(-30, 25)).astype(np.float32)
        data = mutated(bytes(chain.encode(x, DRAW)), rng)
        out = np.empty(n, np.float32)
        try:
            chain.decode(data, out, DRAW)
        except WireError as error:
            assert error.code in ("W20", "W21")
            refused += 1
        else:
            assert not chain.lossy or np.isfinite(out).all()
    return refused, times - refused


def test_a_damaged_chunk_is_refused_or_is_a_value(stages):
    refused, _ = attack(stages, 120, seed=0)
    assert refused > 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_hundred_thousand_damaged_chunks_are_refused_or_are_values(stages):
    refused, decoded = attack(stages, 4000, seed=1)
    assert refused > 1000 and refused + decoded == 4000


@pytest.mark.parametrize("cut", [0, 1, 3, 7])
def test_a_chunk_cut_near_its_start_is_refused(stages, cut):
    chain = make_chain(stages)
    data = bytes(chain.encode(np.ones(50, np.float32), DRAW))
    assert len(data) > cut
    with pytest.raises(WireError):
        chain.decode(data[:cut], np.empty(50, np.float32), DRAW)


def test_one_byte_too_many_is_refused(stages):
    chain = make_chain(stages)
    for n in (0, 50):
        data = bytes(chain.encode(np.ones(n, np.float32), DRAW))
        with pytest.raises(WireError):
            chain.decode(data + b"\0", np.empty(n, np.float32), DRAW)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 3e38, -3e37])
@pytest.mark.parametrize(
    "stages",
    [
        [("lloyd", {"bits": 4})],
        [("rotate", {}), ("lloyd", {"bits": 1})],
        [("grid", {}), ("entropy", {})],
        [("quantize", {})],
        [("ternary", {"fraction": 0.5})],
        [("kmeans", {"centers": 2})],
        [("topk", {"fraction": 0.5})],
        [("rotate", {})],
    ],
    ids=str,
)
def test_a_scale_or_value_that_no_update_has_is_refused(stages, scale):
    chain = make_chain(stages)
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    data = bytearray(chain.encode(x, DRAW))
    at = len(data) - 4 if stages == [("topk", {"fraction": 0.5})] else 0
    data[at : at + 4] = np.float32(scale).tobytes()
    with pytest.raises(WireError, match="W20"):
        chain.decode(bytes(data), np.empty(64, np.float32), DRAW)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_infinities_reach_no_other_dtype_either(dtype):
    from openfed.tensors.record import DTYPES

    chain = make_chain([("lloyd", {"bits": 8})])
    data = np.array([np.inf], "<f4").tobytes() + bytes([255] * 8)
    with pytest.raises(WireError, match="W20"):
        chain.decode(data, np.empty(8, DTYPES[dtype]), DRAW)


def test_bytes_that_are_no_booleans_are_refused():
    for stages in ([], [("zstd", {})]):
        chain = make_chain(stages)
        data = bytes(chain.encode(np.full(5, 2, np.uint8), DRAW))
        with pytest.raises(WireError, match="W20"):
            chain.decode(data, np.empty(5, bool), DRAW)


def bomb(size: int, *, declared: bool) -> bytes:
    return zstandard.ZstdCompressor(level=19, write_content_size=declared).compress(bytes(size))


BOMBS = {
    "declares more": bomb(1 << 28, declared=True),
    "declares nothing": bomb(1 << 28, declared=False),
    "declares less": b"",
    "a skippable frame": b"\x50\x2a\x4d\x18" + (8).to_bytes(4, "little") + bytes(8),
}
_full = bytearray(bomb(1 << 20, declared=True))
_at = bytes(_full).index((1 << 20).to_bytes(4, "little"))
_full[_at : _at + 4] = (1000).to_bytes(4, "little")
BOMBS["declares less"] = bytes(_full)


@pytest.mark.parametrize("frame", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_it_is_opened(frame):
    chain = make_chain([("zstd", {})])
    data = bytes([1]) + len(frame).to_bytes(3, "little") + frame
    out = np.empty(1000, np.uint8)
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="W20"):
            chain.decode(data, out, DRAW)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_decoding_a_chunk_takes_a_few_times_its_values(stages):
    chain = make_chain(stages)
    x = np.random.default_rng(0).standard_normal(CHUNK).astype(np.float32)
    data = bytes(chain.encode(x, DRAW))
    out = np.empty_like(x)
    chain.decode(data, out, DRAW)  # what is kept from call to call
    tracemalloc.start()
    try:
        chain.decode(data, out, DRAW)
        assert tracemalloc.get_traced_memory()[1] < 10 * out.nbytes
    finally:
        tracemalloc.stop()
