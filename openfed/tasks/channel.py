"""What agent and task process say to each other on their Unix socket, and where their files lie.

A message is a 4-byte big-endian length and that many bytes of JSON, one object, at most 1 MiB.
`receive` and `send` block (the task process); `read_message` and `write_message` are for asyncio
(the agent). Both sides read `None` where the other closed between two messages.
"""

import asyncio
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from openfed.errors import WireError
from openfed.parse import finite

LIMIT: Final = 1 << 20
"""Most bytes of one message."""

SOCKET: Final = "agent.sock"
MODEL_IN, FROZEN_IN, LOCAL_IN = "in/model", "in/frozen", "in/local"
UPDATE_OUT, LOCAL_OUT = "out/update", "out/local"

Message = Mapping[str, Any]


def encode(message: Message) -> bytes:
    """Raises: ValueError: more than `LIMIT` bytes, or a number that is not finite."""
    body = json.dumps(message, separators=(",", ":"), allow_nan=False).encode()
    if len(body) > LIMIT:
        raise ValueError(f"a message of {len(body)} bytes, but at most {LIMIT} are allowed")
    return len(body).to_bytes(4, "big") + body


def _length(head: bytes) -> int:
    length = int.from_bytes(head, "big")
    if not 2 <= length <= LIMIT:
        raise WireError("K10", f"a message of {length} bytes, expected 2 to {LIMIT}")
    return length


def _decode(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body, parse_float=finite, parse_constant=finite)
    except (ValueError, RecursionError) as error:
        raise WireError("K10", f"expected a JSON object, got other bytes: {error}") from error
    if not isinstance(message, dict):
        raise WireError("K10", f"expected a JSON object, got {type(message).__name__}")
    return message


def _cut_off(got: int, expected: int) -> WireError:
    return WireError("K10", f"the other side closed after {got} of {expected} bytes")


def send(connection: socket.socket, message: Message) -> None:
    connection.sendall(encode(message))


def receive(connection: socket.socket) -> dict[str, Any] | None:
    """The next message, or None at the end. Raises: WireError: bad framing."""
    head = _receive_exactly(connection, 4)
    if not head:
        return None
    if len(head) < 4:
        raise _cut_off(len(head), 4)
    length = _length(head)
    body = _receive_exactly(connection, length)
    if len(body) < length:
        raise _cut_off(len(body), length)
    return _decode(body)


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes, or fewer where the other side closed."""
    parts: list[bytes] = []
    while size:
        part = connection.recv(min(size, 1 << 16))
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


async def write_message(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(encode(message))
    await writer.drain()


async def read_message(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message, or None at the end. Raises: WireError: bad framing."""
    head = b""
    try:
        head = await reader.readexactly(4)
        return _decode(await reader.readexactly(_length(head)))
    except asyncio.IncompleteReadError as error:
        if not head and not error.partial:
            return None
        raise _cut_off(len(error.partial), error.expected or 0) from error


def listen(exchange: Path) -> socket.socket:
    """The agent's end: bound and listening, for `asyncio.start_unix_server(..., sock=...)`."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(exchange) as address:
            (exchange / SOCKET).unlink(missing_ok=True)
            server.bind(address)
        os.chmod(exchange / SOCKET, 0o600)
        server.listen(4)
    except BaseException:
        server.close()
        raise
    return server


def connect(exchange: Path) -> socket.socket:
    """The task's end. Raises: OSError: nobody listens there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(exchange) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _address(exchange: Path) -> Iterator[str]:
    """An address for the socket in `exchange`: the kernel takes at most 107 bytes of path."""
    folder = os.open(exchange, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET}"
    finally:
        os.close(folder)
