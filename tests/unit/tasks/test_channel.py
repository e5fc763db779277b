"""The socket between agent and task process, from both sides, with good and bad bytes."""

import asyncio
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openfed.errors import WireError
from openfed.tasks import channel

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def received(data: bytes) -> Any:
    """What the blocking side makes of these bytes."""
    ours, theirs = socket.socketpair()

    def say() -> None:
        with theirs:
            theirs.sendall(data)

    sender = threading.Thread(target=say)
    sender.start()
    with ours:
        try:
            return channel.receive(ours)
        finally:
            sender.join()


def read(data: bytes) -> Any:
    """What the asyncio side makes of them."""

    async def work() -> Any:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await channel.read_message(reader)

    return asyncio.run(work())


SIDES = pytest.mark.parametrize("take", [received, read], ids=["blocking", "asyncio"])


@given(st.dictionaries(st.text(), JSON))
@settings(max_examples=50, deadline=None)
def test_what_is_sent_is_read_on_both_sides(message: dict[str, Any]) -> None:
    data = channel.encode(message)
    assert received(data) == message
    assert read(data) == message


@SIDES
def test_the_end_between_messages_is_none(take: Callable[[bytes], Any]) -> None:
    assert take(b"") is None


BAD = {
    "cut in the length": b"\0\0",
    "cut in the body": b"\0\0\0\x09{}",
    "too long": (channel.LIMIT + 1).to_bytes(4, "big"),
    "four gigabytes": b"\xff\xff\xff\xff",
    "empty": b"\0\0\0\0",
    "no JSON": b"\0\0\0\x02xx",
    "no object": b"\0\0\0\x02[]",
    "no UTF-8": b"\0\0\0\x04{\xff}}",
    "not a number": b'\0\0\0\x09{"a":NaN}',
    "beyond all numbers": b'\0\0\0\x0b{"a":1e999}',
    "deep": (1 << 17).to_bytes(4, "big") + b"[" * (1 << 17),
    "an endless number": (6006).to_bytes(4, "big") + b'{"a":' + b"9" * 6000 + b"}",
}


@SIDES
@pytest.mark.parametrize("head", [b"\xff\xff\xff\xff", b"\0\x10\0\x01", b"\0\0\0\x01"])
def test_a_length_that_is_not_allowed_is_refused_before_the_body_is_read(
    take: Callable[[bytes], Any], head: bytes
) -> None:
    with pytest.raises(WireError, match="K10.*expected 2 to 1048576"):
        take(head)


@SIDES
@pytest.mark.parametrize("data", BAD.values(), ids=list(BAD))
def test_bad_bytes_are_a_wire_error(take: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(WireError, match="K10"):
        take(data)


def test_more_than_a_mebibyte_or_a_number_that_is_none_is_not_sent() -> None:
    with pytest.raises(ValueError, match="at most 1048576 are allowed"):
        channel.encode({"a": "x" * channel.LIMIT})
    with pytest.raises(ValueError, match="not JSON compliant"):
        channel.encode({"a": float("nan")})


def test_a_folder_with_a_long_path_has_a_socket_of_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40) / ("longer" * 20)
    folder.mkdir(parents=True)
    for _ in range(2):  # the second one replaces what the first left behind
        server = channel.listen(folder)
        with server, channel.connect(folder) as task:
            assert stat.S_IMODE((folder / channel.SOCKET).stat().st_mode) == 0o600
            agent, _ = server.accept()
            with agent:
                channel.send(task, {"op": "hello"})
                assert channel.receive(agent) == {"op": "hello"}


def test_the_agents_side_talks_over_a_real_socket(tmp_path: Path) -> None:
    async def work() -> Any:
        heard: asyncio.Queue[Any] = asyncio.Queue()

        async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.put_nowait(await channel.read_message(reader))
            await channel.write_message(writer, {"op": "run"})
            heard.put_nowait(await channel.read_message(reader))
            writer.close()
            await writer.wait_closed()

        async with await asyncio.start_unix_server(met, sock=channel.listen(tmp_path)):
            with await asyncio.to_thread(channel.connect, tmp_path) as task:
                await asyncio.to_thread(channel.send, task, {"op": "hello"})
                answer = await asyncio.to_thread(channel.receive, task)
            return await heard.get(), answer, await heard.get()

    assert asyncio.run(work()) == ({"op": "hello"}, {"op": "run"}, None)


def test_nobody_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        channel.connect(tmp_path)
