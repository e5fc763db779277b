"""The packet: golden bytes, round trips in chunks, and every lie that it can tell."""

import json
import os
import random
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from openfed.codec.chain import Chain, make_chain
from openfed.codec.packet import Head, check_chains, head_bytes, most_bytes, packet_blocks
from openfed.codec.packet import packet_limit as limit_of
from openfed.errors import WireError
from openfed.store.packets import open_packet
from openfed.tensors.frame import CHUNK, Held
from openfed.tensors.record import DTYPES, Record, signature_of

LIMIT = 1 << 24
RAW, ZSTD = Chain(), make_chain([("zstd", {"level": 1})])
BF16 = make_chain([("bf16", {}), ("zstd", {"level": 1})])
QUANT = make_chain([("quantize", {"bits": 8, "rounding": "nearest", "group": 1024})], biased=True)
ALL = (RAW, ZSTD, BF16, QUANT)
BASE = "ab" * 32


def sample() -> dict:
    return {
        "a": np.array(-7, np.int64),
        "b": np.array([1.0, -2.5, 3.25], np.float32),
        "c": np.array([True, False]),
        "e": np.zeros((0, 4), np.float64),
    }


def packet(tensors, *chains, numbers=None, base="", seed=0) -> bytes:
    specs = signature_of(tensors)
    chosen = chains * len(specs) if len(chains) == 1 else chains
    head = Head(specs, chosen, numbers or {}, base, seed)
    return b"".join(bytes(block) for block in packet_blocks(head, Held(Record(tensors))))


def decoded(path, allowed=ALL, limit=LIMIT):
    """(head, every entry) of a packet file."""
    with open_packet(path, limit=limit, allowed=allowed) as opened:
        found = {}
        for spec in opened.specs:
            found[spec.name] = np.empty(spec.count, DTYPES[spec.dtype])
            for start in range(0, spec.count, CHUNK):
                opened.read(spec.name, start, found[spec.name][start : start + CHUNK])
        return opened.head, found


def bits(tensors) -> dict:
    return {name: x.tobytes() for name, x in tensors.items()}


@pytest.fixture
def file(tmp_path):
    """Writes bytes to a file, gives its path."""

    def write(data):
        path = tmp_path / "packet"
        path.write_bytes(data)
        return path

    return write


# -- what the bytes are ----------------------------------------------------------------------------

TENSORS = '"tensors":[["a","int64",[],0],["b","float32",[3],0],["c","bool",[2],0]'
ENTRIES = TENSORS + ',["e","float64",[0,4],0]]}'


def test_the_bytes_of_a_packet_without_codecs(file):
    text = '{"base":"","chains":[[]],"numbers":{"n":[3.0]},"seed":5,' + ENTRIES
    golden = (
        b"openfed\x02" + len(text).to_bytes(8, "little") + text.encode()
        + b"\x08\0\0\0" + (-7).to_bytes(8, "little", signed=True)
        + b"\x0c\0\0\0" + bytes.fromhex("0000803f000020c000005040")
        + b"\x02\0\0\0" + b"\x01\x00"
    )  # fmt: skip
    assert packet(sample(), RAW, numbers={"n": (3,)}, seed=5) == golden
    head, found = decoded(file(golden))
    assert (head.numbers, head.base, head.seed) == ({"n": (3.0,)}, "", 5)
    assert bits(found) == bits(sample())


def test_the_bytes_of_a_packet_with_zstd(file):
    text = f'{{"base":"{BASE}",' + '"chains":[[["zstd",1,{"level":1}]]],"numbers":{},"seed":0,'
    text += ENTRIES
    golden = (
        b"openfed\x02" + len(text).to_bytes(8, "little") + text.encode()
        # too short to compress: a byte 0 says so, then the bytes by their place in an element
        + b"\x09\0\0\0" + b"\0" + b"\xf9" + b"\xff" * 7
        + b"\x0d\0\0\0" + b"\0" + bytes.fromhex("000000 000000 802050 3fc040")
        + b"\x03\0\0\0" + b"\0" + b"\x01\x00"
    )  # fmt: skip
    assert packet(sample(), ZSTD, base=BASE) == golden
    head, found = decoded(file(golden))
    assert head.base == BASE and bits(found) == bits(sample())


def test_a_compressed_plane_is_read_as_it_was_written_once(file):
    """Bytes of zstandard 1.5.7: later versions may write others, but must read these."""
    text = '{"base":"","chains":[[["zstd",1,{"level":1}]]],"numbers":{},"seed":0,'
    text += '"tensors":[["z","float32",[300],0]]}'
    frame = GOLDEN_ZEROS
    chunk = b"\x0f" + (len(frame).to_bytes(3, "little") * 4) + frame * 4
    data = b"openfed\x02" + len(text).to_bytes(8, "little") + text.encode()
    data += len(chunk).to_bytes(4, "little") + chunk
    assert not decoded(file(data))[1]["z"].any()


GOLDEN_ZEROS = bytes.fromhex("28b52ffd602c004d00001000000100272ac002")


# -- round trips -----------------------------------------------------------------------------------

EXACT = [name for name in DTYPES if name != "bfloat16"]
arrays = st.one_of(
    st.sampled_from(EXACT).flatmap(
        lambda name: hnp.arrays(DTYPES[name], hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    st.just(np.array([1.5, -2.0], ml_dtypes.bfloat16)),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.dictionaries(st.text(min_size=1, max_size=8), arrays, max_size=4),
    st.sampled_from([RAW, ZSTD]),
    st.integers(0, 2**63 - 1),
)
def test_every_record_survives_bit_for_bit_where_nothing_is_lossy(file, tensors, chain, seed):
    data = packet(tensors, chain, numbers={"n": (1.5, -2.0)}, base=BASE, seed=seed)
    path = file(data)
    head, found = decoded(path)
    assert bits(found) == bits(tensors)
    assert [(s.dtype, s.shape) for s in head.specs] == [
        (x.dtype.name, x.shape) for _, x in sorted(tensors.items())
    ]
    assert (head.base, head.seed, head.numbers) == (BASE, seed, {"n": (1.5, -2.0)})
    body = len(data) - len(head_bytes(head))
    assert body <= most_bytes(head.specs, head.chains) < limit_of(head.specs, head.chains)


def many() -> dict:
    rng = np.random.default_rng(3)
    return {
        "i": rng.integers(-9, 9, 2 * CHUNK).astype(np.int16),
        "w": rng.normal(size=(2, CHUNK + 1)).astype(np.float32),
    }


def test_chunks_are_read_alone_and_in_any_order(file):
    tensors = many()
    data = packet(tensors, ZSTD, QUANT)
    with open_packet(file(data), limit=LIMIT, allowed=ALL) as opened:
        whole = np.empty(2 * CHUNK + 2, np.float32)
        for start in (2 * CHUNK, 0, CHUNK, 0):
            part = whole[start : start + CHUNK]
            opened.read("w", start, part)
        again = np.empty(CHUNK, np.float32)
        opened.read("w", CHUNK, again)
    assert again.tobytes() == whole[CHUNK : 2 * CHUNK].tobytes()
    expected = tensors["w"].reshape(-1)
    assert np.abs(whole - expected).max() < 0.02 and (whole != expected).any()


def test_the_same_values_and_seed_are_the_same_bytes_and_another_seed_others():
    rotated = make_chain([("rotate", {}), ("quantize", {"bits": 4, "rounding": None})])
    tensors = {"w": np.random.default_rng(0).normal(size=999).astype(np.float32)}
    one, same, other = (packet(tensors, rotated, seed=seed) for seed in (1, 1, 2))
    assert one == same and one[-200:] != other[-200:]
    assert blake3(one).hexdigest() != blake3(other).hexdigest()


def test_what_was_lost_is_told_chunk_by_chunk():
    tensors, told = many(), []
    specs = signature_of(tensors)
    head = Head(specs, (ZSTD, QUANT), {})
    lost = lambda entry, start, values, data: told.append((entry, start, values.copy()))  # noqa: E731
    blocks = [bytes(b) for b in packet_blocks(head, Held(Record(tensors)), lost)]
    assert b"".join(blocks) == packet(tensors, ZSTD, QUANT)
    starts = [(entry, start, values.size) for entry, start, values in told]
    assert starts == [
        (0, 0, CHUNK), (0, CHUNK, CHUNK), (1, 0, CHUNK), (1, CHUNK, CHUNK), (1, 2 * CHUNK, 2),
    ]  # fmt: skip
    assert np.concatenate([v for e, _, v in told if e == 1]).tobytes() == tensors["w"].tobytes()


def test_an_entry_in_another_chain_than_the_plan_s_is_refused():
    specs = signature_of(sample())
    plan = {"a": ZSTD, "b": BF16, "c": ZSTD, "e": BF16}
    check_chains(Head(specs, (ZSTD, BF16, ZSTD, BF16), {}), lambda spec: plan[spec.name])
    with pytest.raises(WireError, match="W22.*b"):
        check_chains(Head(specs, (ZSTD, ZSTD, ZSTD, BF16), {}), lambda spec: plan[spec.name])


# -- lies ------------------------------------------------------------------------------------------


def lie(body=b"", **changes) -> bytes:
    """A packet of no entries, but for what is changed in its header."""
    header = {"base": "", "chains": [[]], "numbers": {}, "seed": 0, "tensors": []} | changes
    said = {key: value for key, value in header.items() if value is not None}
    text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    return b"openfed\x02" + len(text).to_bytes(8, "little") + text + body


def one(shape, *, dtype="int8", chain=0, chains=([],), body=b"") -> bytes:
    return lie(body, tensors=[["a", dtype, shape, chain]], chains=list(chains))


ZIPPED = [[["zstd", 1, {"level": 1}]]]
LIES = {
    "nothing": (b"", "W01"),
    "half a magic": (b"openfed", "W01"),
    "a frame": (b"openfed\x01" + bytes(60), "W01"),
    "a header of 2^62 bytes": (b"openfed\x02" + (1 << 62).to_bytes(8, "little"), "W02"),
    "a header beyond the end": (b"openfed\x02" + (999).to_bytes(8, "little") + b"{}", "W02"),
    "a header that ends early": (lie()[:-1], "W02"),
    "deep nesting": (b"openfed\x02" + (100_000).to_bytes(8, "little") + b"[" * 100_000, "W02"),
    "a list": (b"openfed\x02" + (2).to_bytes(8, "little") + b"[]", "W02"),
    "no base": (lie(base=None), "W02"),
    "base is no digest": (lie(base="../../etc/passwd"), "W02"),
    "base is a number": (lie(base=7), "W02"),
    "no seed": (lie(seed=None), "W02"),
    "seed of -1": (lie(seed=-1), "W02"),
    "seed of 2^63": (lie(seed=1 << 63), "W02"),
    "seed is true": (lie(seed=True), "W02"),
    "seed is a float": (lie(seed=1.0), "W02"),
    "an unknown key": (lie(extra=1), "W02"),
    "no tensors": (lie(tensors=None), "W02"),
    "tensors are text": (lie(tensors="abcd"), "W02"),
    "a tensor is an object": (lie(tensors=[{}]), "W02"),
    "a tensor without a chain": (lie(tensors=[["a", "int8", [0]]]), "W02"),
    "a tensor with too much": (lie(tensors=[["a", "int8", [0], 0, 0]]), "W02"),
    "a name twice": (lie(tensors=[["a", "int8", [0], 0]] * 2), "W02"),
    "out of order": (lie(tensors=[["b", "int8", [0], 0], ["a", "int8", [0], 0]]), "W02"),
    "chain index too large": (one([0], chain=1), "W02"),
    "chain index negative": (one([0], chain=-1), "W02"),
    "chain index true": (one([0], chain=True, chains=([], [])), "W02"),
    "chain index a float": (one([0], chain=0.0), "W02"),
    "unknown dtype": (one([0], dtype="object"), "W02"),
    "negative extent": (one([-1]), "W02"),
    "numbers not finite": (lie(numbers={"n": [float("inf")]}), "W02"),
    "numbers are text": (lie(numbers={"n": "1"}), "W02"),
    "numbers are a list": (lie(numbers=[]), "W02"),
    "an unknown codec": (lie(chains=[[["pickle", 1, {}]]]), "W22"),
    "an unknown version": (lie(chains=[[["zstd", 2, {"level": 1}]]]), "W22"),
    "other settings": (lie(chains=[[["zstd", 1, {"level": 3}]]]), "W22"),
    "a chain of another order": (lie(chains=[[["zstd", 1, {"level": 1}], ["bf16", 1, {}]]]), "W22"),
    "a chain is text": (lie(chains=["zstd"]), "W22"),
    "chains are a number": (lie(chains=7), "W02"),
    "too many chains": (lie(chains=[[]] * 100_000), "W22"),
    "counts of 2^47": (one([1 << 47] * 9), "W03"),
    "counts of 2^47, compressed": (one([1 << 47], chains=ZIPPED, body=bytes(1000)), "W03"),
    "no body": (one([1]), "W01"),
    "half a prefix": (one([1], body=b"\1\0"), "W01"),
    "half a chunk": (one([2], body=b"\2\0\0\0x"), "W01"),
    "a chunk too small": (one([2], body=b"\1\0\0\0x"), "W01"),
    "a chunk too large": (one([2], body=b"\3\0\0\0xyz"), "W01"),
    "more than a chunk's most": (one([2], chains=ZIPPED, body=b"\7\0\0\0" + bytes(7)), "W01"),
    "a prefix of 2^32 - 1": (one([2], chains=ZIPPED, body=b"\xff" * 4 + bytes(3)), "W01"),
    "bytes behind the end": (one([1], body=b"\1\0\0\0xy"), "W01"),
    "bytes behind no entries": (lie(b"x"), "W01"),
    "an entry of nothing with bytes": (one([0], body=b"\1\0\0\0x"), "W01"),
}


@pytest.mark.parametrize("name", LIES)
def test_lying_packets_are_refused_when_they_are_opened(file, name):
    data, code = LIES[name]
    with pytest.raises(WireError) as caught:
        open_packet(file(data), limit=LIMIT, allowed=ALL)
    assert caught.value.code == code


def test_each_chunk_keeps_to_its_most(file):
    """Though the packet as a whole is no larger than it may be."""
    entries = [["a", "int8", [2], 0], ["b", "int8", [1000], 0]]
    for size, code in ((6, None), (7, "W01")):  # 2 bytes, 1 of flags, 3 of a frame's size
        body = size.to_bytes(4, "little") + bytes(size) + b"\x05\0\0\0" + bytes(5)
        path = file(lie(body, tensors=entries, chains=ZIPPED))
        if code is None:
            open_packet(path, limit=LIMIT, allowed=ALL).close()
        else:
            with pytest.raises(WireError, match=code):
                open_packet(path, limit=LIMIT, allowed=ALL)


CODES = {
    "an empty chunk": b"\0\0\0\0",
    "planes that are not there": b"\1\0\0\0\xff",
    "a plane too short": b"\2\0\0\0\0x",
    "a frame that is none": b"\7\0\0\0\1\3\0\0abc",
    "a frame of another size": len(x := b"\1" + bytes([19, 0, 0]) + GOLDEN_ZEROS).to_bytes(
        4, "little"
    ) + x,
}  # fmt: skip


@pytest.mark.parametrize("name", CODES)
def test_damaged_codes_are_refused_when_they_are_read(file, name):
    data = one([30], chains=ZIPPED, body=CODES[name])
    with pytest.raises(WireError, match=r"^W2[01] "):
        decoded(file(data))


def test_codes_of_a_lossy_chain_are_for_floats_only(file):
    """Else a damaged chunk could become any integer, and a cast of it an exception."""
    chain = [["quantize", 1, dict(QUANT.header[0][2])]]
    huge = np.float32(1e38).tobytes()
    data = one([4], dtype="int32", chains=(chain,), body=b"\x08\0\0\0" + huge + b"\xff\0\1\2")
    with pytest.raises(WireError, match="^W22 "):
        open_packet(file(data), limit=LIMIT, allowed=ALL)


def test_bytes_that_are_no_booleans_are_refused(file):
    for data in (
        one([2], dtype="bool", body=b"\2\0\0\0\1\2"),
        one([2], dtype="bool", chains=ZIPPED, body=b"\3\0\0\0\0\1\2"),
    ):
        with pytest.raises(WireError, match="booleans"):
            decoded(file(data))


def test_a_packet_above_the_limit_is_refused(file):
    data = packet(sample(), RAW)
    path = file(data)
    assert decoded(path, limit=len(data))
    with pytest.raises(WireError, match="^W03 "):
        decoded(path, limit=len(data) - 1)


def test_only_chains_of_the_allow_list_are_opened(file):
    path = file(packet(sample(), ZSTD))
    for allowed in ((), (RAW,), (BF16, RAW)):
        with pytest.raises(WireError, match="^W22 "):
            decoded(path, allowed)


def test_a_packet_of_many_empty_chunks_takes_no_memory(file):
    """4 bytes of file may not become 100 bytes of memory."""
    count = CHUNK * 250_000
    path = file(one([count], chains=ZIPPED, body=bytes(1_000_000)))
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match="^W0[13] "):
            open_packet(path, limit=2_000_000, allowed=ALL)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_while_it_is_read_is_an_error_not_a_crash(file):
    for chain in ALL:
        tensors = {"w": np.random.default_rng(0).normal(size=3 * CHUNK).astype(np.float32)}
        path = file(packet(tensors, chain))
        out = np.empty(CHUNK, np.float32)
        with open_packet(path, limit=LIMIT, allowed=ALL) as opened:
            opened.read("w", 2 * CHUNK, out)
            os.truncate(path, path.stat().st_size - 1)
            opened.read("w", CHUNK, out)
            for size in (path.stat().st_size, 0):
                os.truncate(path, size)
                with pytest.raises(WireError, match="^W01 "):
                    opened.read("w", 2 * CHUNK, out)


def test_a_link_is_not_followed_and_a_pipe_is_not_waited_for(file, tmp_path):
    path = file(packet(sample(), RAW))
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError):
        open_packet(tmp_path / "link", limit=LIMIT, allowed=ALL)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises((OSError, WireError)):
        open_packet(tmp_path / "pipe", limit=LIMIT, allowed=ALL)


def test_what_was_opened_in_vain_is_closed(file):
    before = len(os.listdir("/proc/self/fd"))
    path = file(LIES["no body"][0])
    for _ in range(20):
        with pytest.raises(WireError):
            open_packet(path, limit=LIMIT, allowed=ALL)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_a_packet_with_changed_bytes_is_an_error_or_a_value_and_nothing_else(file):
    rng = random.Random(5)
    tensors = {
        "a": np.arange(40, dtype=np.int32),
        "b": np.float32([0.5] * 300),
        "c": np.array([True, False, True]),
        "d": np.linspace(-1, 1, 500).astype(np.float64),
    }
    good = packet(tensors, ZSTD, QUANT, ZSTD, BF16, numbers={"n": (3.0,)})
    seen = set()
    for _ in range(600):
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 1, 3, 10))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            decoded(file(bytes(data)))
            seen.add("value")
        except WireError as error:
            seen.add(error.code)
    assert {"value", "W01", "W02", "W20", "W22"} <= seen


def test_a_header_says_what_it_was_given():
    specs = signature_of(sample())
    head = Head(specs, (ZSTD, RAW, ZSTD, RAW), {"n": (1.0,)}, BASE, 9)
    data = head_bytes(head)
    said = json.loads(data[16:])
    assert said["chains"] == [[["zstd", 1, {"level": 1}]], []]
    assert [entry[3] for entry in said["tensors"]] == [0, 1, 0, 1]
