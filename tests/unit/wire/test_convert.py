"""Messages and blocks as bytes: every field comes back, and nonsense is refused with a code."""

import asyncio
import json
import math
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openfed.errors import WireError
from openfed.pki.request import Request
from openfed.wire import federation_pb2 as pb
from openfed.wire.blocks import MOST_BLOCK, read_blocks, write_blocks
from openfed.wire.convert import (
    MOST_MESSAGE,
    MOST_TEXT,
    MOST_TRACEBACK,
    decode,
    decode_offset,
    encode,
    encode_offset,
)
from openfed.wire.messages import (
    BLOCK,
    ENOUGH,
    Assignment,
    Blob,
    Failure,
    Head,
    Hello,
    Next,
    Orders,
    Payload,
    Pull,
    Push,
    Renew,
    Renewed,
    Report,
    Ruling,
    RunState,
    Stamp,
    Verdict,
    Welcome,
    block_size,
)

DIGEST = "0123456789abcdef" * 4
STAMP = Stamp("fed", "run-1", DIGEST, "op-1", attempt=3, protocol=(2, 7), capabilities=("a", "b"))
HEAD = Head(7, DIGEST, b"s" * 64)
ASSIGNMENT = Assignment(
    ask="run-1/3/0",
    task="train",
    round=3,
    settings={"epochs": 2, "lr": 0.1, "deep": {"list": [1, None, True, "é"]}},
    payloads=(
        Payload("model", DIGEST, 0),
        Payload("frozen", "f" * 64, 1 << 40, (Blob("e" * 64, 9, DIGEST), Blob("f" * 64, 1 << 40))),
    ),
    updates=True,
    limit=12345,
)
MESSAGES = [
    Hello(STAMP, {"python": "3.11", "isolation": "process"}),
    Welcome(STAMP, RunState.WAITING, 30.5),
    Next(STAMP, 20.0, ("a", "b")),
    Orders(STAMP, RunState.RUNNING, "", 30.0, ASSIGNMENT, ("x",)),
    Orders(STAMP, RunState.FAILED, "one: K03\n  it broke", 0.0, None, ()),
    Pull(STAMP, DIGEST, 1 << 45),
    Push(STAMP, "ask", "upload"),
    Push(STAMP, "ask", "upload", DIGEST),
    Report(STAMP, "ask", DIGEST, 7),
    Report(STAMP, "ask", failure=Failure("K01", "it broke", "line 1\n\tline 2")),
    Verdict(STAMP, Ruling.LATE, "R01", "too late"),
    Welcome(STAMP, RunState.RUNNING, 1.0, b"k" * 32, HEAD),
    Orders(STAMP, RunState.RUNNING, "", 30.0, head=HEAD),
    Verdict(STAMP, Ruling.ACCEPTED, receipt=b'{"number":7}'),
    Hello(STAMP, {}, b'{"digest": "0"}'),
    Renew(STAMP, Request(b"csr", b"i" * 32, b"s" * 64)),
    Renewed(STAMP, b"chain", b"roots"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_every_field_of_every_message_comes_back(message):
    assert decode(type(message), encode(message)) == message


@pytest.mark.parametrize("state", RunState)
def test_every_state_comes_back(state):
    assert decode(Welcome, encode(Welcome(STAMP, state, 1.0))).state is state


@pytest.mark.parametrize("ruling", Ruling)
def test_every_ruling_comes_back(ruling):
    assert decode(Verdict, encode(Verdict(STAMP, ruling))).ruling is ruling


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON))
def test_settings_come_back(value):
    orders = Orders(STAMP, RunState.RUNNING, "", 1.0, replace(ASSIGNMENT, settings=value))
    found = decode(Orders, encode(orders))
    assert found == orders
    assert json.dumps(found.assignment.settings) == json.dumps(
        json.loads(json.dumps(value, sort_keys=True))
    )


def refused(code="W10"):
    return pytest.raises(WireError, match=f"^{code} ")


BAD_VALUES = [
    Pull(STAMP, "abc"),
    Pull(STAMP, DIGEST.upper()),
    Pull(STAMP, "../" + DIGEST[3:]),
    Pull(STAMP, DIGEST, -1),
    Pull(STAMP, DIGEST, 1 << 51),
    Pull(STAMP, DIGEST, 1 << 70),
    Push(STAMP, "", "upload"),
    Push(STAMP, "a" * 201, "upload"),
    Push(STAMP, "a\nb", "upload"),
    Push(STAMP, "a\x1b[31m", "upload"),
    Push(STAMP, "ask", ""),
    Push(STAMP, "ask", "u" * 65),
    Push(STAMP, "ask", "../../journal"),
    Push(STAMP, "ask", "two.upload"),
    Push(STAMP, "ask", DIGEST),  # would be the name of a blob
    Push(STAMP, "ask", "α"),
    Push(STAMP, "ask", "a\nb"),
    Push(STAMP, "ask", "upload", "abc"),
    Push(STAMP, "ask", "upload", "../" + DIGEST[3:]),
    Next(STAMP, math.nan),
    Next(STAMP, math.inf),
    Next(STAMP, -1.0),
    Next(STAMP, 1.0, ("x",) * 1025),
    Next(STAMP, 1.0, ("x", "")),
    Hello(STAMP, {str(i): "x" for i in range(1025)}),
    Hello(STAMP, {"": "x"}),
    Welcome(STAMP, RunState.RUNNING, math.inf),
    Welcome(STAMP, RunState.RUNNING, 1.0, b"k" * 33),
    Welcome(STAMP, RunState.RUNNING, 1.0, b"", Head(7, "abc")),
    Orders(STAMP, RunState.RUNNING, "", 1.0, head=Head(1 << 60, DIGEST)),
    Orders(STAMP, RunState.RUNNING, "", 1.0, head=Head(7, DIGEST, b"s" * 65)),
    Verdict(STAMP, Ruling.ACCEPTED, receipt=b"x" * 4097),
    Report(STAMP, "ask"),
    Report(STAMP, "ask", DIGEST, 7, Failure("K01", "both")),
    Report(STAMP, "ask", failure=Failure("", "no code")),
    Pull(replace(STAMP, federation=""), DIGEST),
    Pull(replace(STAMP, operation=""), DIGEST),
    Pull(replace(STAMP, attempt=0), DIGEST),
    Pull(replace(STAMP, attempt=1 << 33), DIGEST),
    Pull(replace(STAMP, run="\ud800"), DIGEST),
    *(
        Orders(STAMP, RunState.RUNNING, "", 1.0, replace(ASSIGNMENT, **change))
        for change in (
            {"settings": {"x": math.nan}},
            {"settings": {"x": object()}},
            {"settings": {"x": "y" * (1 << 18)}},
            {"payloads": (Payload("m", DIGEST, 1), Payload("m", DIGEST, 1))},
            {"payloads": (Payload("m", "zz", 1),)},
            {"payloads": tuple(Payload(str(i), DIGEST, 1) for i in range(1025))},
            {"payloads": (Payload("m", DIGEST, 1, (Blob(DIGEST, 1),) * 1025),)},
            {"payloads": (Payload("m", DIGEST, 1, (Blob("zz", 1),)),)},
            {"payloads": (Payload("m", DIGEST, 1, (Blob(DIGEST, 1, "zz"),)),)},
            {"payloads": (Payload("m", DIGEST, 1, (Blob(DIGEST, 1 << 51),)),)},
            {"payloads": (Payload("m", DIGEST, 1, (Blob(DIGEST, -1),)),)},
            {"round": -1},
            {"round": (1 << 31) + 1},
            {"limit": 1 << 51},
        )
    ),
]


@pytest.mark.parametrize("message", BAD_VALUES, ids=lambda m: type(m).__name__)
def test_values_out_of_range_never_arrive(message):
    with refused():
        decode(type(message), encode(message))


STAMP_PB = pb.Stamp.FromString(
    pb.Pull.FromString(encode(Pull(STAMP, DIGEST))).stamp.SerializeToString()
)


def orders_pb(settings="{}", **fields) -> bytes:
    assignment = pb.Assignment(ask="a", task="t", settings=settings)
    return pb.Orders(
        **({"stamp": STAMP_PB, "state": 2, "assignment": assignment} | fields)
    ).SerializeToString()


@pytest.mark.parametrize(
    "settings",
    [
        "",
        "[]",
        "1",
        "{",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"a": ' * 100_000,
        '{"a": ' + "1" * 5_000 + "}",
    ],
    ids=range(11),
)
def test_settings_that_are_not_canonical_json_are_refused(settings):
    decode(Orders, orders_pb())
    with refused():
        decode(Orders, orders_pb(settings))


@pytest.mark.parametrize(
    "fields",
    [
        {"state": 0},
        {"state": 99},
        {"reason": "x" * (MOST_TEXT + 1)},
        {"reason": "\x1b]0;title\x07"},
        {"lease_s": -0.5},
    ],
    ids=str,
)
def test_fields_that_no_honest_peer_sends_are_refused(fields):
    with refused():
        decode(Orders, orders_pb(**fields))


def test_an_unknown_ruling_is_refused():
    with refused():
        decode(Verdict, pb.Verdict(stamp=STAMP_PB, ruling=77).SerializeToString())


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data):
    for kind in {type(message) for message in MESSAGES}:
        with pytest.raises(WireError):
            decode(kind, data)  # no Stamp: never a whole message


def test_a_message_beyond_the_limit_is_not_parsed():
    with refused():
        decode(Hello, b"\x00" * (MOST_MESSAGE + 1))


def test_another_major_version_is_refused_by_name_and_a_minor_is_not():
    assert decode(Pull, encode(Pull(replace(STAMP, protocol=(2, 99)), DIGEST)))
    for major in (1, 3):
        with refused("W11") as caught:
            decode(Pull, encode(Pull(replace(STAMP, protocol=(major, 0)), DIGEST)))
        assert f"{major}.0" in caught.value.message


def test_fields_of_a_later_minor_are_ignored():
    later = encode(Pull(STAMP, DIGEST)) + b"\xfa\x06\x03abc"  # field 111, three bytes
    assert decode(Pull, later) == Pull(STAMP, DIGEST)


def test_text_for_people_is_cleaned_and_cut_by_the_sender():
    failure = Failure("K01", "\x1b[31mred\r" + "m" * 9_999, "t" * 99_999 + "the end")
    found = decode(Report, encode(Report(STAMP, "ask", failure=failure))).failure
    assert found.message.startswith("\ufffd[31mred\ufffdmmm")
    assert len(found.message) == MOST_TEXT
    assert len(found.traceback) == MOST_TRACEBACK
    assert found.traceback.endswith("the end")


@pytest.mark.parametrize("offset", [0, 7, 1 << 50, ENOUGH])
def test_offsets_come_back(offset):
    assert decode_offset(encode_offset(offset)) == offset


@pytest.mark.parametrize("offset", [(1 << 50) + 1, ENOUGH - 1, ENOUGH + 1])
def test_offsets_that_no_upload_has_are_refused(offset):
    with refused():
        decode_offset(encode_offset(offset))
    with refused():
        decode_offset(b"\xff")


# -- blocks ----------------------------------------------------------------------------------------


async def stream(parts):
    for part in parts:
        yield part


def collect(iterator) -> list[bytes]:
    async def run():
        return [bytes(part) async for part in iterator]

    return asyncio.run(run())


@settings(deadline=None)
@given(st.lists(st.binary(max_size=9)))
def test_blocks_are_the_bytes_and_nothing_else(parts):
    sent = collect(write_blocks(stream(parts)))
    assert b"".join(sent) == b"".join(parts)
    assert all(sent), "an empty block is the end of an upload"
    assert collect(read_blocks(stream(sent))) == sent


def test_large_blocks_are_cut_and_no_byte_is_lost():
    body = bytes(range(256)) * (BLOCK // 256 * 2) + b"end"
    for data in (body, memoryview(body), memoryview(body[:-3]).cast("I")):
        sent = collect(write_blocks(stream([data])))
        assert b"".join(sent) == bytes(data)
        assert all(len(block) <= BLOCK for block in sent)
    assert [len(block) for block in collect(write_blocks(stream([body])))] == [BLOCK, BLOCK, 3]


def test_a_block_has_from_one_byte_to_the_most():
    good = [b"x", b"y" * MOST_BLOCK]
    assert collect(read_blocks(stream(good))) == good
    for bad in (b"", b"x" * (MOST_BLOCK + 1)):
        with refused("W12"):
            collect(read_blocks(stream([*good, bad])))


def test_streams_are_closed_when_the_reader_stops():
    closed = []

    async def source():
        try:
            while True:
                yield b"x"
        finally:
            closed.append(True)

    async def run():
        bodies = read_blocks(write_blocks(source()))
        await anext(bodies)
        await bodies.aclose()
        assert closed == [True]

    asyncio.run(run())


class Watched(bytes):
    """Bytes that say when they are freed."""

    freed = 0

    def __del__(self):
        Watched.freed += 1


@pytest.mark.parametrize("passing", [read_blocks, write_blocks])
def test_a_block_that_was_used_is_gone_while_the_next_one_is_waited_for(passing):
    """Many streams wait at once: what each holds is what the aggregator's memory grows by."""

    async def main():
        came = asyncio.Queue()

        async def source():
            while True:
                yield await came.get()

        stream = passing(source())
        came.put_nowait(Watched(b"x" * 100))
        before = Watched.freed
        await anext(stream)
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        assert Watched.freed == before + 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await stream.aclose()

    asyncio.run(main())


def test_many_sites_have_smaller_blocks():
    sizes = {sites: block_size(sites) for sites in (1, 2, 8, 9, 16, 32, 33, 10_000)}
    mib = 1 << 20
    assert sizes[1] == sizes[2] == sizes[8] == BLOCK == 2 * mib
    assert sizes[9] == 16 * mib // 9 and sizes[16] == mib
    assert sizes[32] == sizes[33] == sizes[10_000] == mib // 2
