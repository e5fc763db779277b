"""The frame: golden bytes, round trips, and every lie a header can tell."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openfed.errors import WireError
from openfed.tensors.frame import (
    CHUNK,
    Held,
    chunks,
    digest,
    open_frame,
    pack,
    source_blocks,
    unpack,
    write_frame,
)
from openfed.tensors.record import DTYPES, Record, Spec

LIMIT = 1 << 20

GOLDEN_DIGEST = "1d50ce1fc61cfc6cb01b77e572e0eea395d30376be5943d121875813b5a1c9c0"
GOLDEN_HEADER = (
    b'{"numbers":{"n":[3.0]},"tensors":[["a","int64",[]],["b","float32",[3]],["c","bool",[2]]]}'
)


def sample() -> Record:
    return Record(
        {
            "b": np.array([1.0, -2.5, 3.25], np.float32),
            "a": np.array(-7, np.int64),
            "c": np.array([True, False]),
        },
        {"n": (3,)},
    )


def frame(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-(16 + len(text)) % 64)
    return b"openfed\x01" + len(text).to_bytes(8, "little") + text + body


def test_the_bytes_are_the_ones_the_format_says():
    body = (
        (-7).to_bytes(8, "little", signed=True)
        + bytes(56)
        + bytes.fromhex("0000803f000020c000005040")
        + bytes(52)
        + b"\x01\x00"
    )
    assert pack(sample()) == frame(GOLDEN_HEADER, body)
    assert digest(sample()) == blake3(pack(sample())).hexdigest() == GOLDEN_DIGEST


def test_equal_records_have_equal_digests_whatever_their_order():
    one = Record({"x": np.zeros(2), "y": np.ones(3)}, {"b": (1.0,), "a": (2.0,)})
    two = Record({"y": np.ones(3), "x": np.zeros(2)}, {"a": (2.0,), "b": (1.0,)})
    assert digest(one) == digest(two)
    assert digest(one) != digest(Record({"x": np.zeros(2), "y": np.ones(3)}, {"a": (2.0,)}))


def test_layout_and_byte_order_of_an_array_do_not_change_its_frame():
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    strided = np.repeat(plain, 2, axis=1)[:, ::2]
    swapped = plain.astype(">f4")
    fortran = np.asfortranarray(plain)
    frames = {pack(Record({"x": x})) for x in (plain, strided, swapped, fortran)}
    assert len(frames) == 1


arrays = st.one_of(
    hnp.arrays(
        st.sampled_from([DTYPES[name] for name in DTYPES if name != "bfloat16"]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    ),
    st.just(np.array([1.5, -2.0], ml_dtypes.bfloat16)),
)


@given(
    st.dictionaries(st.text(min_size=1, max_size=8), arrays, max_size=4),
    st.dictionaries(
        st.text(max_size=8),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        max_size=3,
    ),
)
def test_every_record_survives_bit_for_bit(tensors, numbers):
    record = Record(tensors, {name: tuple(values) for name, values in numbers.items()})
    data = pack(record)
    again = unpack(data, limit=LIMIT)
    assert pack(again) == data
    for name, value in tensors.items():
        assert again.tensors[name].dtype == value.dtype
        assert again.tensors[name].shape == value.shape
        assert again.tensors[name].tobytes() == value.tobytes()
    assert again.numbers == {k: tuple(map(float, v)) for k, v in record.numbers.items()}


@given(st.binary(max_size=300), st.integers(0, 400))
def test_any_bytes_are_a_frame_or_a_wire_error(noise, cut):
    for data in (noise, b"openfed\x01" + noise, pack(sample())[:cut] + noise):
        try:
            unpack(data, limit=LIMIT)
        except WireError as error:
            assert error.code in ("W01", "W02", "W03")


ATTACKS = {
    "unknown dtype": ({"numbers": {}, "tensors": [["a", "object", [1]]]}, "W02"),
    "a name twice": ({"numbers": {}, "tensors": [["a", "int8", [0]]] * 2}, "W02"),
    "out of order": ({"numbers": {}, "tensors": [["b", "int8", [0]], ["a", "int8", [0]]]}, "W02"),
    "a number of 401 digits": ({"numbers": {"n": [10**400]}, "tensors": []}, "W02"),
    "negative extent": ({"numbers": {}, "tensors": [["a", "int8", [-1]]]}, "W02"),
    "extent is a float": ({"numbers": {}, "tensors": [["a", "int8", [1.0]]]}, "W02"),
    "extent is true": ({"numbers": {}, "tensors": [["a", "int8", [True]]]}, "W02"),
    "2^62 bytes": ({"numbers": {}, "tensors": [["a", "int8", [1 << 40, 1 << 22]]]}, "W03"),
    "product overflows": ({"numbers": {}, "tensors": [["a", "int8", [1 << 47] * 9]]}, "W03"),
    "too many dimensions": ({"numbers": {}, "tensors": [["a", "int8", [1] * 33]]}, "W02"),
    "empty name": ({"numbers": {}, "tensors": [["", "int8", [0]]]}, "W02"),
    "NaN": (b'{"numbers":{"n":[NaN]},"tensors":[]}', "W02"),
    "infinity by exponent": (b'{"numbers":{"n":[1e999]},"tensors":[]}', "W02"),
    "a number that is text": ({"numbers": {"n": ["1"]}, "tensors": []}, "W02"),
    "a number that is true": ({"numbers": {"n": [True]}, "tensors": []}, "W02"),
    "no tensors": ({"numbers": {}}, "W02"),
    "a list": ([], "W02"),
    "deep nesting": (b"[" * 100_000, "W02"),
    "not JSON": (b"\xff\xfe", "W02"),
    "missing body": ({"numbers": {}, "tensors": [["a", "int8", [1]]]}, "W01"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_lying_headers_are_refused(attack):
    header, code = ATTACKS[attack]
    with pytest.raises(WireError) as caught:
        unpack(frame(header), limit=LIMIT)
    assert caught.value.code == code


def test_a_header_of_2_to_the_62_bytes_is_refused_before_it_is_read():
    with pytest.raises(WireError, match="W02"):
        unpack(b"openfed\x01" + (1 << 62).to_bytes(8, "little"), limit=LIMIT)


def test_nothing_can_hide_in_the_padding_or_behind_the_end():
    data = bytearray(pack(sample()))
    start = len(frame(GOLDEN_HEADER))
    data[start + 9] = 1
    with pytest.raises(WireError, match="hidden"):
        unpack(bytes(data), limit=LIMIT)
    with pytest.raises(WireError, match="W01"):
        unpack(pack(sample()) + b"\0", limit=LIMIT)


def test_a_byte_that_is_no_boolean_is_refused():
    data = pack(sample())[:-2] + b"\x02\x00"
    with pytest.raises(WireError, match="booleans"):
        unpack(data, limit=LIMIT)


def test_a_frame_above_the_limit_is_refused():
    data = pack(sample())
    assert unpack(data, limit=len(data))
    with pytest.raises(WireError, match="W03"):
        unpack(data, limit=len(data) - 1)


def test_views_do_not_copy_and_cannot_be_written():
    record = unpack(pack(sample()), limit=LIMIT, copy=False)
    with pytest.raises(ValueError, match="read-only"):
        record.tensors["b"][0] = 1


def test_a_file_is_overwritten_in_place_and_read_back(tmp_path):
    path = tmp_path / "frame"
    path.write_bytes(b"x" * 10_000)
    inode = path.stat().st_ino
    write_frame(path, sample())
    assert path.read_bytes() == pack(sample())
    assert path.stat().st_ino == inode
    with open_frame(path, limit=LIMIT) as opened:
        assert pack(opened.record()) == pack(sample())
        part = np.empty(2, np.float32)
        opened.read("b", 1, part)
        assert part.tolist() == [-2.5, 3.25]


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(tmp_path):
    path = tmp_path / "frame"
    write_frame(path, Record({"x": np.ones(1 << 16)}))
    with open_frame(path, limit=LIMIT) as opened:
        os.truncate(path, 1000)
        with pytest.raises(WireError, match="ends inside"):
            opened.record()


def test_a_link_is_not_followed(tmp_path):
    write_frame(tmp_path / "real", sample())
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(OSError):
        open_frame(tmp_path / "link", limit=LIMIT)
    with pytest.raises(OSError):
        write_frame(tmp_path / "link", sample())


def test_an_unknown_dtype_cannot_be_written():
    with pytest.raises(KeyError):
        pack(Record({"x": np.zeros(2, np.complex64)}))
    with pytest.raises(ValueError):
        pack(Record({}, {"n": (float("nan"),)}))


@given(st.dictionaries(st.text(min_size=1, max_size=8), arrays, max_size=4))
def test_a_source_and_its_record_have_the_same_frame(tensors):
    record = Record(tensors, {"n": (1.0,)})
    assert b"".join(bytes(block) for block in source_blocks(Held(record))) == pack(record)


def test_a_frame_of_many_chunks_is_read_and_written_chunk_by_chunk(tmp_path):
    tensors = {"a": np.arange(2 * CHUNK + 5, dtype=np.int16), "b": np.ones((3, 7))}
    record = Record(tensors, {"n": (2.0,)})
    write_frame(tmp_path / "frame", record)
    with open_frame(tmp_path / "frame", limit=LIMIT) as opened:
        blocks = [bytes(block) for block in source_blocks(opened)]
    assert b"".join(blocks) == pack(record)
    assert max(map(len, blocks)) == 2 * CHUNK


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [(0, 1)]),
        (CHUNK, [(0, CHUNK)]),
        (CHUNK + 1, [(0, CHUNK), (CHUNK, 1)]),
        (3 * CHUNK, [(0, CHUNK), (CHUNK, CHUNK), (2 * CHUNK, CHUNK)]),
    ],
)
def test_chunks_cover_an_entry_once(count, expected):
    assert list(chunks(Spec("x", "int8", (count,)))) == expected
