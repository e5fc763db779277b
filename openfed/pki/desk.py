"""The authority's desk for renewals: a Unix socket, so that the authority needs no open port.

The aggregator passes on what a peer of its asks, and who that peer is by its certificate; its own
leaf is renewed in the same way. One line of JSON each way, one request a connection:

    {csr, identity, signature, peer: {federation, role, name, serial, not_after}}
    {chain, anchors} or {code, message}

Who may ask is what the kernel says: processes of this user, of root, or of one user more.
"""

import asyncio
import json
import os
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from openfed.errors import CertificateError
from openfed.parse import NAME
from openfed.pki.disk import make_folder
from openfed.pki.listener import Clock, Opener, Said
from openfed.pki.messages import (
    MOST_ANSWERED,
    MOST_ASKED,
    check_object,
    read_answer,
    read_object,
    read_request,
    text_of,
    write_refusal,
    write_request,
)
from openfed.pki.peer import Peer
from openfed.pki.request import Request

PATIENCE_S = 10.0
_BACKLOG = 64
_SERIAL = re.compile(r"[0-9a-f]{1,40}")


@dataclass(frozen=True)
class Renewed:
    chain: bytes  # PEM, the leaf first
    anchors: bytes  # PEM: the roots to trust from now on


@asynccontextmanager
async def serve_desk(
    opener: Opener,
    path: Path,
    clock: Clock = time.time,
    said: Said = lambda _: None,
    *,
    uid: int | None = None,
) -> AsyncIterator[None]:
    """Renew at the socket `path` while the context lasts; the user `uid` may ask as well.

    Raises C11 (its folder is open to others), C66 (another authority answers there).
    """
    allowed = {os.getuid(), 0} | ({uid} if uid is not None else set())
    talks = set[asyncio.Task[None]]()

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk
        talks.add(talk)
        talk.add_done_callback(talks.discard)
        with suppress(OSError, EOFError):
            try:
                writer.write(await _answered(reader, writer, allowed, opener, clock, said) + b"\n")
                async with asyncio.timeout(PATIENCE_S):
                    await writer.drain()
            finally:
                writer.close()

    listening = await _listen(path)
    server = await asyncio.start_unix_server(met, sock=listening, limit=MOST_ASKED)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        server.close()
        await server.wait_closed()
        if talks:
            await asyncio.wait(talks)


async def _answered(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    allowed: set[int],
    opener: Opener,
    clock: Clock,
    said: Said,
) -> bytes:
    try:
        try:
            async with asyncio.timeout(PATIENCE_S):
                line = await reader.readuntil(b"\n")
        except asyncio.LimitOverrunError:
            raise CertificateError("C61", f"more than {MOST_ASKED} bytes in a request") from None
        if (uid := _user(writer)) not in allowed:
            raise CertificateError("C65", f"user {uid} may not ask the authority to renew")
        return await asyncio.to_thread(_renew, opener, line, clock, said)
    except CertificateError as error:
        said(f"refused to renew: {error}")
        return write_refusal(error)
    except OSError as error:
        said(f"could not renew: {error}")
        raise


def _renew(opener: Opener, line: bytes, clock: Clock, said: Said) -> bytes:
    told = read_object(line, "csr identity signature peer")
    request, peer = read_request(told), _peer(told["peer"])
    office = opener()
    try:
        chain = office.renew(request, peer, clock())
    except CertificateError as error:
        message = f"{peer.role} {peer.name!r}: {error.message}"
        raise CertificateError(error.code, message) from error
    said(f"renewed {peer.role} {peer.name!r}")
    parts = {"chain": chain.decode(), "anchors": office.anchors().decode()}
    return json.dumps(parts).encode()


def _peer(told: object) -> Peer:
    facts = check_object(told, "federation role name serial not_after")
    federation, role, name = (text_of(facts, key, NAME) for key in ("federation", "role", "name"))
    serial, ends = int(text_of(facts, "serial", _SERIAL), 16), facts["not_after"]
    if type(ends) not in (int, float):
        raise CertificateError("C61", "'not_after' is not a number")
    return Peer(federation, role, name, serial, ends)


def _user(writer: asyncio.StreamWriter) -> int:
    connection: socket.socket = writer.get_extra_info("socket")
    form = struct.Struct("3i")  # process, user, group
    told = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    found: int = form.unpack(told)[1]
    return found


async def _listen(path: Path) -> socket.socket:
    """A socket file of ours (0600) in a folder of ours (0700), in place of one left behind."""
    make_folder(path.parent, 0o700)
    with suppress(OSError):
        (await _connect(path)).close()
        raise CertificateError("C66", f"another authority answers at {path}: stop it first")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _address(path) as address:
            path.unlink(missing_ok=True)
            server.bind(address)
        path.chmod(0o600)
        server.listen(_BACKLOG)
    except BaseException:
        server.close()
        raise
    return server


async def renew_at_desk(path: Path, request: Request, peer: Peer) -> Renewed:
    """Have the authority at `path` renew `peer`'s leaf for the keys in `request`.

    Raises C57: the authority is offline (try again later); what it refuses the request with; C64.
    """
    facts = {"federation": peer.federation, "role": peer.role, "name": peer.name}
    facts |= {"serial": f"{peer.serial:032x}"}
    asked = write_request(request) | {"peer": facts | {"not_after": peer.not_after}}
    try:
        async with asyncio.timeout(PATIENCE_S):
            answer = await _ask(path, json.dumps(asked).encode() + b"\n")
    except (OSError, EOFError) as error:
        raise CertificateError("C57", f"the authority is offline: {path}: {error}") from error
    except asyncio.LimitOverrunError as error:
        raise CertificateError("C64", "the authority's answer is too long") from error
    told = read_answer(answer, "chain anchors")
    return Renewed(told["chain"], told["anchors"])


async def _ask(path: Path, line: bytes) -> bytes:
    connection = await _connect(path)
    reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MOST_ANSWERED)
    try:
        writer.write(line)
        await writer.drain()
        return await reader.readuntil(b"\n")
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        with _address(path) as address:
            await asyncio.get_running_loop().sock_connect(connection, address)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """An address for the socket at `path`: the kernel takes at most 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
