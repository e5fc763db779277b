"""Bytes through gRPC streams and through plain TLS sockets: two processes, and what both spend.

    python -m bench.streams serve KIND CERTS       prints its port; ends with its standard input
    python -m bench.streams move KIND CERTS PORT PID MB      prints rows as JSON; PID: the server's

KIND: sync, aio (Python gRPC, mTLS, messages are the bytes themselves), tls (mTLS 1.3), tcp.
"""

import asyncio
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.bare import OPTIONS, credentials_of, listening_credentials
from bench.meter import GB, MIB, cpu_seconds
from openfed.transport.environment import grpc

CHUNKS = (64 << 10, 256 << 10, 1 << 20, 4 << 20)
REPEAT = 3
CALLS = 300
SERVICE = "bench.Streams"

Row = dict[str, Any]
Move = Callable[[str, int, int], None]
"""Move so many bytes `up` or `down` in chunks of a size."""


def measure(kind: str, certs: Path, mb: int) -> list[Row]:
    """GB/s and CPU-seconds per GB of both ends, by direction and chunk; and small calls."""
    child = [sys.executable, "-m", "bench.streams"]
    server = subprocess.Popen(
        [*child, "serve", kind, str(certs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin and server.stdout
    try:
        port = server.stdout.readline().strip()
        given = [*child, "move", kind, str(certs), port, str(server.pid), str(mb)]
        rows: list[Row] = json.loads(subprocess.run(given, stdout=subprocess.PIPE).stdout)
        return rows
    finally:
        server.stdin.close()
        server.wait(20)


# -- the server ------------------------------------------------------------------------------------


def serve_sync(certs: Path) -> None:
    def up(messages: Iterator[bytes], _: Any) -> bytes:
        return b"%d" % sum(map(len, messages))

    def down(request: bytes, _: Any) -> Iterator[bytes]:
        chunk, total = map(int, request.split())
        body = os.urandom(chunk)
        yield from (body for _ in range(total // chunk))

    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    server.add_generic_rpc_handlers((_methods(up, down, lambda request, _: request),))
    print(server.add_secure_port("localhost:0", listening_credentials(certs)), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


async def _serve_aio(certs: Path) -> None:
    async def up(messages: AsyncIterator[bytes], _: Any) -> bytes:
        total = 0
        async for message in messages:
            total += len(message)
        return b"%d" % total

    async def down(request: bytes, _: Any) -> AsyncIterator[bytes]:
        chunk, total = map(int, request.split())
        body = os.urandom(chunk)
        for _ in range(total // chunk):
            yield body

    async def call(request: bytes, _: Any) -> bytes:
        return request

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_methods(up, down, call),))
    print(server.add_secure_port("localhost:0", listening_credentials(certs)), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


def _methods(up: Any, down: Any, call: Any) -> Any:
    methods = {
        "up": grpc.stream_unary_rpc_method_handler(up),
        "down": grpc.unary_stream_rpc_method_handler(down),
        "call": grpc.unary_unary_rpc_method_handler(call),
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def serve_socket(kind: str, certs: Path) -> None:
    """Each connection begins with 16 bytes: how many will come. They are counted, then answered."""
    listening = socket.create_server(("127.0.0.1", 0))
    print(listening.getsockname()[1], flush=True)
    threading.Thread(target=_accept, args=(listening, kind, certs), daemon=True).start()
    sys.stdin.read()


def _accept(listening: socket.socket, kind: str, certs: Path) -> None:
    buffer = bytearray(MIB)
    while True:
        connection, _ = listening.accept()
        if kind == "tls":
            connection = _context(certs, "aggregator", ssl.PROTOCOL_TLS_SERVER).wrap_socket(
                connection, server_side=True
            )
        while head := connection.recv(16):
            left = int(head)
            connection.sendall(b"+")
            while left:
                left -= connection.recv_into(buffer, min(left, MIB))
            connection.sendall(b"+")


def _context(certs: Path, name: str, side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certs / name / "chain.pem", certs / name / "node.key")
    context.load_verify_locations(certs / "authority.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


# -- the client ------------------------------------------------------------------------------------


def moved(move: Move, pid: int, directions: tuple[str, ...], mb: int) -> list[Row]:
    rows = []
    for direction in directions:
        for chunk in CHUNKS:
            row = {"direction": direction, "chunk KiB": chunk >> 10}
            rows.append({**row, **_cheapest(move, pid, direction, chunk, mb)})
    return rows


def _cheapest(move: Move, pid: int, direction: str, chunk: int, mb: int) -> Row:
    total, walls, cpus = mb * MIB, [], []
    move(direction, chunk, max(chunk, total // 8))
    for _ in range(REPEAT):
        cpu, wall = cpu_seconds(pid) + time.process_time(), time.perf_counter()
        move(direction, chunk, total)
        walls.append(time.perf_counter() - wall)
        cpus.append(cpu_seconds(pid) + time.process_time() - cpu)
    return {"GB/s": total / GB / min(walls), "CPU s/GB": min(cpus) / (total / GB)}


def latency(call: Callable[[], object]) -> Row:
    taken = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return {"direction": "small call", "ms": 1e3 * statistics.median(taken)}


def move_sync(certs: Path, port: int, pid: int, mb: int) -> list[Row]:
    credentials = credentials_of(certs, "site01")
    with grpc.secure_channel(f"localhost:{port}", credentials, options=OPTIONS) as channel:
        up = channel.stream_unary(f"/{SERVICE}/up")
        down = channel.unary_stream(f"/{SERVICE}/down")
        call = channel.unary_unary(f"/{SERVICE}/call")
        body = os.urandom(max(CHUNKS))

        def move(direction: str, chunk: int, total: int) -> None:
            piece = body[:chunk]
            if direction == "up":
                assert int(up(piece for _ in range(total // chunk))) == total
            else:
                assert sum(map(len, down(b"%d %d" % (chunk, total)))) == total

        return [*moved(move, pid, ("up", "down"), mb), latency(lambda: call(b"x"))]


def move_aio(certs: Path, port: int, pid: int, mb: int) -> list[Row]:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    body = os.urandom(max(CHUNKS))

    async def opened() -> Any:
        credentials = credentials_of(certs, "site01")
        return grpc.aio.secure_channel(f"localhost:{port}", credentials, options=OPTIONS)

    channel = loop.run_until_complete(opened())
    up = channel.stream_unary(f"/{SERVICE}/up")
    down = channel.unary_stream(f"/{SERVICE}/down")
    call = channel.unary_unary(f"/{SERVICE}/call")

    async def pieces(chunk: int, total: int) -> AsyncIterator[bytes]:
        piece = body[:chunk]
        for _ in range(total // chunk):
            yield piece

    async def transfer(direction: str, chunk: int, total: int) -> None:
        if direction == "up":
            assert int(await up(pieces(chunk, total))) == total
            return
        came = 0
        async for message in down(b"%d %d" % (chunk, total)):
            came += len(message)
        assert came == total

    async def small() -> None:
        await call(b"x")

    def move(direction: str, chunk: int, total: int) -> None:
        loop.run_until_complete(transfer(direction, chunk, total))

    rows = moved(move, pid, ("up", "down"), mb)
    rows.append(latency(lambda: loop.run_until_complete(small())))
    loop.run_until_complete(channel.close())
    loop.close()
    return rows


def move_socket(kind: str, certs: Path, port: int, pid: int, mb: int) -> list[Row]:
    connection = socket.create_connection(("127.0.0.1", port))
    if kind == "tls":
        context = _context(certs, "site01", ssl.PROTOCOL_TLS_CLIENT)
        connection = context.wrap_socket(connection, server_hostname="localhost")
    body = memoryview(os.urandom(max(CHUNKS)))

    def move(_: str, chunk: int, total: int) -> None:
        connection.sendall(b"%16d" % total)
        connection.recv(1)
        for _ in range(total // chunk):
            connection.sendall(body[:chunk])
        connection.recv(1)

    return moved(move, pid, ("up",), mb)


def main() -> None:
    role, kind, certs = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if role == "serve":
        if kind == "sync":
            serve_sync(certs)
        elif kind == "aio":
            asyncio.run(_serve_aio(certs))
        else:
            serve_socket(kind, certs)
        return
    port, pid, mb = map(int, sys.argv[4:])
    if kind in ("sync", "aio"):
        rows = {"sync": move_sync, "aio": move_aio}[kind](certs, port, pid, mb)
    else:
        rows = move_socket(kind, certs, port, pid, mb)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
