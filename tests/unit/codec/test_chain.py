"""Chains: what goes in comes out, in as many bytes as were announced, of any dtype and size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfed.codec.base import CHUNK, Draw
from openfed.codec.chain import STAGES, make_chain, read_chain
from openfed.errors import WireError
from openfed.tensors.record import DTYPES, FLOATING

DRAW = Draw(seed=7, entry=3, chunk=1)
SHAPES = ("normal", "heavy", "constant", "zero", "denormal", "huge", "sparse")


def values(shape: str, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    made = {
        "normal": rng.standard_normal(n),
        "heavy": rng.standard_t(2, n) * 1e-3,
        "constant": np.full(n, -0.37),
        "zero": np.zeros(n),
        "denormal": rng.standard_normal(n) * 1e-41,
        "huge": rng.uniform(-1, 1, n) * 1e30,
        "sparse": rng.standard_normal(n) * (rng.random(n) < 0.03),
    }
    return made[shape].astype(np.float32)


def coded(chain, x, draw=DRAW):
    data = bytes(chain.encode(x, draw))
    out = np.full(x.shape, 77, x.dtype)
    chain.decode(data, out, draw)
    return data, out


@pytest.mark.parametrize("biased", [False, True])
def test_every_chain_keeps_its_announced_size_and_gives_finite_values(stages, biased):
    chain = make_chain(stages, biased=biased)
    for shape in SHAPES:
        for n in (0, 1, 2, 7, 255, 1024, 3001):
            x = values(shape, n)
            data, out = coded(chain, x)
            assert len(data) <= chain.most(n, "float32"), (shape, n)
            assert np.isfinite(out).all(), (shape, n)
            assert chain.lossy or out.tobytes() == x.tobytes(), (shape, n)
            assert shape != "zero" or not out.any(), n


@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK])
def test_a_whole_chunk_goes_through_every_chain(stages, n):
    chain = make_chain(stages, biased=True)
    x = values("normal", n)
    data, out = coded(chain, x)
    assert len(data) <= chain.most(n, "float32")
    assert np.linalg.norm(out - x) <= np.linalg.norm(x) * 1.0001


@pytest.mark.parametrize("dtype", sorted(FLOATING))
def test_lossy_chains_take_every_floating_dtype(stages, dtype):
    chain = make_chain(stages, biased=True)
    for n in (0, 1, 300):
        x = values("normal", n).astype(DTYPES[dtype])
        data, out = coded(chain, x)
        assert out.dtype == x.dtype and len(data) <= chain.most(n, dtype)
        size = np.linalg.norm(x.astype(np.float32))
        assert np.linalg.norm(out.astype(np.float32) - x.astype(np.float32)) <= 1.01 * size


@pytest.mark.parametrize("stages", [[], [("zstd", {})], [("grid", {}), ("entropy", {})]], ids=str)
@pytest.mark.parametrize("dtype", sorted(DTYPES))
@pytest.mark.parametrize("n", [0, 1, 77, 5000])
def test_exact_stages_carry_every_dtype_bit_by_bit(stages, dtype, n):
    chain = make_chain(stages).exact()
    assert not chain.lossy
    raw = np.random.default_rng(1).integers(0, 256, n * DTYPES[dtype].itemsize, dtype=np.uint8)
    x = (raw & 1 if dtype == "bool" else raw).view(DTYPES[dtype])  # NaN and infinity among them
    data, out = coded(chain, x)
    assert out.tobytes() == x.tobytes()
    assert len(data) <= chain.most(n, dtype)


def test_what_a_half_cannot_hold_comes_back_as_the_largest_half():
    x = np.full(64, 65504, np.float16)
    x[0] = -65504
    for stages in ([("lloyd", {"bits": 1})], [("grid", {}), ("entropy", {})]):
        _, out = coded(make_chain(stages), x)
        assert np.isfinite(out).all()


def test_repeated_bytes_become_few():
    data, _ = coded(make_chain([("zstd", {})]), np.full(CHUNK, 0.5, np.float32))
    assert len(data) < 200


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.3e30, -2e30])
def test_a_lossy_chain_refuses_what_it_cannot_bound_and_an_exact_one_carries_it(stages, bad):
    chain = make_chain(stages)
    for dtype in (np.float32, np.float64):
        x = values("normal", 100).astype(dtype)
        x[41] = bad
        if chain.lossy:
            with pytest.raises(ValueError, match="expected finite values"):
                chain.encode(x, DRAW)
        else:
            assert coded(chain, x)[1].tobytes() == x.tobytes()


def test_a_double_beyond_single_precision_is_refused():
    with pytest.raises(ValueError, match="expected finite values"):
        make_chain([("rotate", {})]).encode(np.array([1e300, 1.0]), DRAW)


def test_a_lossy_chain_refuses_integers():
    with pytest.raises(ValueError, match="expected floating values, got int64"):
        make_chain([("fp16", {})]).encode(np.arange(3), DRAW)


def test_more_than_a_chunk_is_refused(stages):
    with pytest.raises(ValueError, match="at most 65536"):
        make_chain(stages).encode(np.zeros(CHUNK + 1, np.float32), DRAW)


def test_encoding_changes_nothing_of_what_it_is_given(stages):
    x = values("heavy", 1500)
    x.flags.writeable = False
    before = x.tobytes()
    make_chain(stages).encode(x, DRAW)
    assert x.tobytes() == before


def test_the_same_draw_gives_the_same_bytes_and_another_draw_others():
    x = values("normal", 500)
    for stages in ([("quantize", {})], [("rotate", {})], [("randomk", {"fraction": 0.5})]):
        chain = make_chain(stages)
        first, again = (bytes(chain.encode(x, Draw(1, 2, 3))) for _ in range(2))
        assert first == again
        for other in (Draw(0, 2, 3), Draw(1, 0, 3), Draw(1, 2, 0)):
            assert bytes(chain.encode(x, other)) != first


def test_random_bits_are_the_ones_of_philox_under_a_hashed_key():
    assert Draw(1, 2, 3).bits("rotate", 10).tobytes().hex() == "39ca63b01e01498fd997"
    assert Draw(1, 2, 3).bits("rotate", 4).tobytes().hex() == "39ca63b01e01498fd997"[:8]
    assert Draw(1, 2, 3).bits("quantize", 4).tobytes() != Draw(1, 2, 3).bits("rotate", 4).tobytes()


@pytest.mark.parametrize(
    "stages",
    [
        [("nothing", {})],
        [("zstd", {}), ("fp16", {})],
        [("fp16", {}), ("rotate", {})],
        [("fp16", {}), ("bf16", {})],
        [("rotate", {}), ("rotate", {})],
        [("zstd", {}), ("zstd", {})],
        [("entropy", {})],
        [("rotate", {}), ("entropy", {})],
        [("fp16", {}), ("entropy", {})],
        [("grid", {}), ("entropy", {}), ("zstd", {})],
        [("quantize", {"bits": 3})],
        [("quantize", {"group": 15})],
        [("quantize", {"rounding": "up"})],
        [("quantize", {"biased": True})],
        [("lloyd", {"bits": 16})],
        [("grid", {"step": 0.04})],
        [("topk", {"fraction": 0.0})],
        [("randomk", {"fraction": 1.1})],
        [("ternary", {"fraction": -1.0})],
        [("kmeans", {"centers": 1})],
        [("zstd", {"level": 20})],
        [("rotate", {"seed": 1})],
    ],
)
def test_a_chain_that_makes_no_sense_cannot_be_made(stages):
    with pytest.raises(ValueError):
        make_chain(stages)


def test_a_header_says_name_version_and_every_setting():
    chain = make_chain([("topk", {"fraction": 0.5}), ("quantize", {"bits": 4}), ("zstd", {})])
    assert chain.json() == [
        ["topk", 1, {"fraction": 0.5}],
        ["quantize", 1, {"bits": 4, "group": 1024}],
        ["zstd", 1, {"level": 1}],
    ]
    assert chain.exact().json() == [["zstd", 1, {"level": 1}]]
    assert make_chain([("grid", {}), ("entropy", {})]).exact().json() == []


def test_both_forms_of_a_chain_are_decoded_alike(stages):
    plain, biased = make_chain(stages), make_chain(stages, biased=True)
    assert plain.json() == biased.json()
    x = values("normal", 700)
    data = bytes(biased.encode(x, DRAW))
    one, other = np.empty_like(x), np.empty_like(x)
    plain.decode(data, one, DRAW)
    biased.decode(data, other, DRAW)
    assert one.tobytes() == other.tobytes()


def test_a_header_of_the_plan_is_read_as_its_chain(stages):
    chain = make_chain(stages)
    assert read_chain(chain.json(), [make_chain([("zstd", {"level": 7})]), chain]) == chain


@pytest.mark.parametrize(
    "header",
    [
        None,
        7,
        "zstd",
        [],
        [["zstd", 2, {"level": 1}]],
        [["zstd", 1, {"level": 2}]],
        [["zstd", 1, {}]],
        [["zstd", 1]],
        [["gzip", 1, {}]],
        [["zstd", 1, {"level": 1}], ["zstd", 1, {"level": 1}]],
        {"zstd": 1},
    ],
)
def test_a_header_that_the_plan_does_not_have_is_refused(header):
    with pytest.raises(WireError) as caught:
        read_chain(header, [make_chain([("zstd", {})])])
    assert caught.value.code == "W22" and "['zstd']" in caught.value.message


def test_every_stage_says_its_bound_its_bias_its_bytes_and_its_source():
    for name, (version, stage) in STAGES.items():
        text = " ".join(stage.__doc__.split())
        assert version == 1
        assert "ytes per element" in text or "No bytes" in text or name == "zstd", name
        assert "Source: " in text, name
        assert "Exact" in text or "Error" in text or "|x - C(x)|" in text, name
        assert "Exact" in text or "biased" in text or "both forms the same" in text, name


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_floats_survive_any_chain(stages, data):
    chain = make_chain(stages, biased=data.draw(st.booleans()))
    width = st.floats(-(2.0**100), 2.0**100, width=32)
    x = np.array(data.draw(st.lists(width, max_size=40)), np.float32)
    draw = Draw(data.draw(st.integers(0, 2**63)), data.draw(st.integers(0, 9)), 0)
    coded_bytes, out = coded(chain, x, draw)
    assert len(coded_bytes) <= chain.most(x.size, "float32")
    assert np.isfinite(out).all()
