"""Inside the stages: layouts by hand, the transform against its matrix, the tables recomputed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openfed.codec import entropy, lloyd, rotate, sparsify, zstd
from openfed.codec.base import CHUNK, Draw
from openfed.codec.symbols import look_up, pack, packed_size, per_byte
from openfed.errors import WireError


def u8(*numbers):
    return np.array(numbers, np.uint8)


# -- symbols --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "per"), [(2, 8), (3, 5), (4, 4), (5, 3), (6, 3), (7, 2), (15, 2), (16, 2), (17, 1)]
)
def test_as_many_symbols_share_a_byte_as_fit(levels, per):
    assert per_byte(levels) == per and levels**per <= 256 < levels ** (per + 1)


def test_symbols_are_packed_lowest_first():
    assert pack(u8(1, 0, 0, 0, 0, 0, 0, 1, 1), 2).tolist() == [0b10000001, 1]
    assert pack(u8(2, 1, 0, 0, 2, 1), 3).tolist() == [2 + 3 + 2 * 81, 1]
    assert pack(u8(3, 2, 1, 0, 1), 4).tolist() == [0b00011011, 1]
    assert pack(u8(14, 13, 12), 15).tolist() == [14 + 13 * 15, 12]
    assert pack(u8(9, 254), 255).tolist() == [9, 254]


@given(st.integers(2, 256), st.integers(0, 50), st.integers(0, 2**32))
def test_packed_symbols_are_looked_up_again(levels, n, seed):
    symbols = np.random.default_rng(seed).integers(0, levels, n).astype(np.uint8)
    packed = pack(symbols, levels)
    out = np.empty(n, np.float32)
    look_up(np.arange(levels, dtype=np.float32), packed, per_byte(levels), out)
    assert packed.size == packed_size(n, levels)
    assert out.tolist() == symbols.tolist()


def test_a_byte_that_is_no_symbols_is_refused():
    for levels, byte in ((3, 243), (15, 225), (255, 255)):
        with pytest.raises(WireError, match="W20"):
            look_up(
                np.zeros(levels, np.float32), u8(byte), per_byte(levels), np.empty(1, np.float32)
            )


# -- positions ------------------------------------------------------------------------------------


def test_positions_are_gaps_in_rice_code():
    # 3 of 12: mean gap 3, 2 low bits; gaps 1, 0, 6 = 0|01, 0|00, 1|10
    written = sparsify.write_positions(np.array([1, 2, 9]), 12)
    assert written == bytes([2, 1, 0, 0b10000000, 0b00100000, 0b11010000])
    assert sparsify.read_positions(memoryview(written), 3, 12).tolist() == [1, 2, 9]


@given(st.data())
def test_any_positions_are_read_again(data):
    n = data.draw(st.integers(1, 400))
    chosen = data.draw(st.sets(st.integers(0, n - 1), min_size=1))
    positions = np.array(sorted(chosen))
    written = sparsify.write_positions(positions, n)
    assert len(written) <= sparsify.most_positions(positions.size, n)
    assert sparsify.positions_size(memoryview(written), positions.size, n) == len(written)
    assert sparsify.read_positions(memoryview(written), positions.size, n).tolist() == sorted(
        chosen
    )


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1, 0.5])
def test_random_positions_cost_little_more_than_their_entropy(fraction):
    k = sparsify.kept(fraction, CHUNK)
    positions = np.sort(np.random.default_rng(0).permutation(CHUNK)[:k])
    f = k / CHUNK
    bound = CHUNK * -(f * math.log2(f) + (1 - f) * math.log2(1 - f))
    bits = 8 * len(sparsify.write_positions(positions, CHUNK))
    assert bits <= bound * 1.05 + 8 * 20


@pytest.mark.parametrize(
    ("data", "k", "n"),
    [
        (bytes([16, 1, 0, 0xFF]), 1, 8),  # more low bits than any
        (bytes([0, 2, 0, 0xFF, 0xFF]), 1, 8),  # more bytes than any gaps need
        (bytes([0, 1, 0, 0b00000000]), 1, 8),  # no position
        (bytes([0, 1, 0, 0b11000000]), 1, 8),  # two
        (bytes([0, 1, 0, 0b00000001]), 1, 7),  # beyond the end
        (bytes([3, 1, 0, 0x80, 0x80, 0x80, 0x40]), 1, 8),  # beyond the end by its low bits
    ],
)
def test_positions_that_cannot_be_are_refused(data, k, n):
    with pytest.raises(WireError, match="W20"):
        sparsify.positions_size(memoryview(data), k, n)
        sparsify.read_positions(memoryview(data), k, n)


def test_random_positions_are_distinct_and_evenly_spread():
    counts = np.zeros(50)
    for chunk in range(2000):
        drawn = sparsify._drawn(Draw(1, 1, chunk), 10, 50)
        assert len(set(drawn.tolist())) == 10 and (np.diff(drawn) > 0).all()
        counts[drawn] += 1
    assert np.abs(counts - 400).max() < 4.5 * math.sqrt(400 * 0.8)


def test_all_of_the_values_at_random_are_all_of_them():
    assert sparsify._drawn(Draw(1, 1, 1), 9, 9).tolist() == [*range(9)]


# -- rotation -------------------------------------------------------------------------------------


def hadamard(p):
    """By the definition of Sylvester."""
    h = np.ones((1, 1))
    while len(h) < p:
        h = np.block([[h, h], [h, -h]])
    return h


@pytest.mark.parametrize("p", [1, 2, 4, 8, 16, 32, 64, 128, 512])
def test_the_transform_is_a_hadamard_transform(p):
    digits = rotate._digits(p)
    assert math.prod(digits) == p
    made = np.stack([rotate._transform(row.copy(), digits) for row in np.eye(p, dtype=np.float32)])
    index = np.arange(p).reshape(digits).transpose(3, 2, 1, 0).reshape(-1)
    assert (made == hadamard(p)[:, index]).all()


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 100, 1023, 1024, 1025, 40_000, CHUNK - 1, CHUNK])
def test_a_rotation_keeps_norms_and_is_undone(n):
    x = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    draw, stage = Draw(1, 2, 3), rotate.Rotate()
    _, y = stage.forward(x, draw)
    assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), rel=1e-5)
    back = np.empty_like(x)
    stage.backward(memoryview(b""), y.copy(), back, draw)
    assert np.linalg.norm(back - x) <= 2.0**-18 * np.linalg.norm(x)


def test_one_large_value_is_spread_over_all():
    x = np.zeros(1024, np.float32)
    x[700] = 1.0
    _, y = rotate.Rotate().forward(x, Draw(1, 2, 3))
    assert (np.abs(y) == 1 / 32).all() and 300 < (y > 0).sum() < 724


# -- levels ---------------------------------------------------------------------------------------


def pdf(x):
    return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tail(x):
    return np.array([math.erfc(v / math.sqrt(2)) / 2 for v in x])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_every_level_is_the_mean_of_its_cell(bits):
    levels = lloyd.levels_of(bits)
    assert (levels == -levels[::-1]).all() and (np.diff(levels) > 0).all()
    half = levels[levels.size // 2 :].astype(np.float64)
    borders = np.concatenate([[0.0], (half[1:] + half[:-1]) / 2, [40.0]])
    mass = tail(borders[:-1]) - tail(borders[1:])
    means = (pdf(borders[:-1]) - pdf(borders[1:])) / mass
    assert np.abs(means - half).max() < 2e-6
    expected = {1: 0.36338, 2: 0.117482, 4: 0.00950101, 8: 4.11851e-5}[bits]
    assert 1 - 2 * (mass * half**2).sum() == pytest.approx(expected, rel=1e-4)


# -- entropy --------------------------------------------------------------------------------------


def test_weights_are_sixteenths_of_octaves_in_integers():
    assert entropy.WEIGHTS[:4].tolist() == [0, 256, 267, 279]
    assert (entropy.WEIGHTS[1:] == np.round(entropy.WEIGHTS[1:])).all()
    exact = 2.0 ** (8 + np.arange(255) / 16)
    assert (np.abs(entropy.WEIGHTS[1:] - exact) < 1 + 1e-6 * exact).all()
    assert entropy._described(np.array([0, 1, 2, 62_000, CHUNK])).tolist() == [0, 1, 17, 255, 255]


def symbols_of(kind, n, rng):
    return {
        "one": np.full(n, 200),
        "two": rng.integers(0, 2, n) * 255,
        "uniform": rng.integers(0, 256, n),
        "few": rng.choice([3, 77, 78, 250], n),
        "fine": np.clip(np.rint(rng.standard_normal(n) * 20), -127, 127) + 127,
        "coarse": np.clip(np.rint(rng.standard_normal(n)), -127, 127) + 127,
        "rare": np.where(rng.random(n) < 0.001, rng.integers(0, 256, n), 127),
    }[kind].astype(np.uint8)


@pytest.mark.parametrize("kind", ["one", "two", "uniform", "few", "fine", "coarse", "rare"])
@pytest.mark.parametrize("n", [1, 2, 9, 1000, CHUNK - 1, CHUNK])
def test_symbols_come_back_and_cost_their_entropy(kind, n):
    symbols = symbols_of(kind, n, np.random.default_rng(0))
    data = entropy.Entropy().encode(symbols)
    assert (entropy.Entropy().decode(memoryview(data), n) == symbols).all()
    counts = np.bincount(symbols)[np.unique(symbols)]
    bits = float((counts * np.log2(n / counts)).sum())
    assert len(data) <= entropy.Entropy().most(n)
    assert 8 * len(data) <= bits + 0.025 * n + 8 * (4 + 256 + 24)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=60), st.integers(1, 40))
def test_any_symbols_come_back(some, times):
    symbols = np.tile(np.array(some, np.uint8), times)
    data = entropy.Entropy().encode(symbols)
    assert (entropy.Entropy().decode(memoryview(data), symbols.size) == symbols).all()
    assert len(data) <= entropy.Entropy().most(symbols.size)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d[:3],
        lambda d: bytes([8]) + d[1:],  # 8 low bits
        lambda d: d[:1] + bytes([255]) + d[2:],  # symbols above 255
        lambda d: d[:2] + bytes([1, 0]) + d[4:],  # one symbol
        lambda d: d[:2] + bytes([1, 2]) + d[4:],  # 513
        lambda d: d[:4] + bytes(d[2]) + d[4 + d[2] :],  # no weights
        lambda d: d[:-1],
        lambda d: d[:-4] + bytes(4),
        lambda d: d + bytes([1, 2, 3, 4]),
    ],
)
def test_what_no_coder_wrote_is_refused(change):
    symbols = symbols_of("coarse", 500, np.random.default_rng(0))
    data = entropy.Entropy().encode(symbols)
    with pytest.raises(WireError, match="W2"):
        entropy.Entropy().decode(memoryview(change(data)), 500)


# -- zstd -----------------------------------------------------------------------------------------


def test_only_planes_that_shrink_are_compressed():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(CHUNK) * 0.01).astype(np.float32)
    data = zstd.Zstd().encode(x.view(np.uint8), 4)
    assert data[0] == 0b1000  # signs and exponents
    size = int.from_bytes(data[1:4], "little")
    assert len(data) == 4 + 3 * CHUNK + size and size < 0.4 * CHUNK
    assert data[4 : 4 + CHUNK] == x.view(np.uint8)[::4].tobytes()


def test_short_values_are_left_alone():
    assert zstd.Zstd().encode(u8(1, 2, 3, 4), 4) == bytes([0, 1, 2, 3, 4])


@pytest.mark.parametrize("data", [b"", bytes([0b10, 1, 0, 0, 9]), bytes([1]), bytes([1, 9, 0, 0])])
def test_a_header_of_planes_that_cannot_be_is_refused(data):
    with pytest.raises(WireError, match="W2"):
        zstd.Zstd().decode(memoryview(data), 1, np.empty(1, np.uint8))
