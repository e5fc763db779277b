"""Enrolment by token, at the authority: a small HTTPS server, open while a token is outstanding.

    GET /authority   the roots to trust (PEM). For all: a node checks them against its pin
    POST /enrol      an application -> {chain, anchors, roster}, or 403 {code, message}

Python's gRPC asks all clients of a port for a certificate, or none, so this is the one exception to
mutual TLS: TLS 1.3, the node shows no certificate, and proves that it holds a token.
"""

import asyncio
import json
import re
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from openfed.errors import CertificateError
from openfed.files import readable
from openfed.parse import join_address, split_address
from openfed.pki.authority import LISTENER_S, issue_listener
from openfed.pki.keys import create_key, load_key
from openfed.pki.messages import MOST_ASKED, write_refusal
from openfed.pki.office import Office
from openfed.pki.peer import AUTHORITY
from openfed.pki.token import Application, read_application
from openfed.pki.token_book import Book, judge, read_book, redeem

Opener = Callable[[], Office]
Said = Callable[[str], None]
Clock = Callable[[], float]

PATIENCE_S = 5.0
"""For the handshake, for the head, for the body and for the answer to be taken: each."""
MOST_CONNECTIONS = 64
"""At a time; others wait."""
_MOST_HEAD = 8 << 10
_LOOK_S = 0.5  # between two looks at the book of tokens
_BREATHE_S = 0.5  # when no connection can be taken: no descriptors are left
_HEAD = re.compile(rb"(GET|POST) (/[!-~]*) HTTP/1\.[01]\r\n((?:[!-9;-~]+:[\t -~]*\r\n)*)\r\n")
_LENGTH = re.compile(rb"^content-length:[\t ]*([0-9]{1,9})[\t ]*\r$", re.I | re.M)


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes = b""
    kind: str = "application/json"


async def keep_enrolment(
    cert_dir: Path, opener: Opener, listen: str, said: Said, clock: Clock = time.time
) -> None:
    """Take applications at `listen` (host:port) whenever a token is outstanding; until cancelled.

    `opener` opens the office below `cert_dir`. Raises C12, C14, C15, C62.
    """
    clerk, port, trouble = _Clerk(cert_dir, opener, said, clock), None, ""
    try:
        while True:
            wanted = clerk.look()
            if port and not wanted:
                await port.close()
                port = None
                said("enrolment is closed: no token is outstanding")
            elif wanted and not port:
                try:
                    port, trouble = _Port(clerk, listen), ""
                    said(f"enrolment is open at {port.address}")
                except OSError as error:
                    if trouble != str(error):
                        said(f"cannot listen at {listen}: {error}; trying again")
                    trouble = str(error)
            await asyncio.sleep(_LOOK_S)
    finally:
        if port:
            await port.close()


class _Clerk:
    """Answers requests; knows nothing of connections. Only `answer` is called from threads."""

    def __init__(self, cert_dir: Path, opener: Opener, said: Said, clock: Clock) -> None:
        self.context: ssl.SSLContext | None = None  # what the port shows, while it is open
        self._cert_dir, self._opener, self._said, self._clock = cert_dir, opener, said, clock
        self._federation = opener().federation
        self._book: Book = {}
        self._seen: tuple[object, ...] = ()
        self._until = 0.0

    def look(self) -> bool:
        """Whether a token is outstanding; then `context` is fit to be shown."""
        paths = self._cert_dir / AUTHORITY / "tokens.jsonl", self._cert_dir / "authority.pem"
        if (seen := tuple(map(_stamp, paths))) != self._seen:
            self._book, self._until = read_book(self._cert_dir), 0.0
            self._seen = seen
        now = self._clock()
        wanted = any(entry.open(now) for entry in self._book.values())
        if wanted and now >= self._until:
            self.context = _context(self._opener(), now)
            self._until = now + LISTENER_S / 2
        return wanted

    def answer(self, method: str, path: str, body: bytes, who: str) -> _Answer:
        if (method, path) == ("GET", "/authority"):
            anchors = (self._cert_dir / "authority.pem").read_bytes()
            return _Answer(200, anchors, "application/x-pem-file")
        if (method, path) != ("POST", "/enrol"):
            return _Answer(404)
        try:
            return _Answer(200, self._enrol(read_application(body), who))
        except CertificateError as error:
            self._said(f"refused {who}: {error}")
            return _Answer(403, write_refusal(error))
        except OSError as error:
            self._said(f"could not answer {who}: {error}")
            return _Answer(500)

    def _enrol(self, application: Application, who: str) -> bytes:
        now = self._clock()
        judge(read_book(self._cert_dir), application, self._federation, now)  # opens no key
        office = self._opener()
        chain, new = redeem(office, application, now)
        did = "enrolled" if new else "answered again"
        self._said(f"{did} {application.role} {application.name!r} of {who}")
        roster = (self._cert_dir / "roster.json").read_bytes()
        parts = {"chain": chain, "anchors": office.anchors(), "roster": roster}
        return json.dumps({name: part.decode() for name, part in parts.items()}).encode()


class _Port:
    """The open port: connections in, answers out. Raises `OSError`: it cannot listen there."""

    def __init__(self, clerk: _Clerk, listen: str) -> None:
        host, port = split_address(listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=64)
        self._socket.setblocking(False)
        self.address = join_address(*self._socket.getsockname()[:2])
        self._clerk = clerk
        self._slots = asyncio.Semaphore(MOST_CONNECTIONS)
        self._talks = set[asyncio.Task[None]]()
        self._accepting = asyncio.create_task(self._accept())

    async def close(self) -> None:
        """Takes no more; what was asked is answered."""
        self._accepting.cancel()
        await asyncio.wait({self._accepting})
        self._socket.close()
        if self._talks:
            await asyncio.wait(self._talks)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._slots.acquire()
            try:
                connection, _ = await loop.sock_accept(self._socket)
            except OSError:
                self._slots.release()
                await asyncio.sleep(_BREATHE_S)
                continue
            talk = asyncio.create_task(self._talk(connection))
            self._talks.add(talk)
            talk.add_done_callback(self._over)

    def _over(self, talk: asyncio.Task[None]) -> None:
        self._talks.discard(talk)
        self._slots.release()

    async def _talk(self, connection: socket.socket) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, EOFError):
            try:
                who = join_address(*connection.getpeername()[:2])
                reader, writer = await _secured(connection, self._clerk.context)
            except BaseException:
                connection.close()
                raise
            try:
                writer.write(_written(await self._answer(reader, who)))
                async with asyncio.timeout(PATIENCE_S):
                    await writer.drain()
                    writer.close()
                    await writer.wait_closed()
            finally:
                writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, who: str) -> _Answer:
        try:
            async with asyncio.timeout(PATIENCE_S):
                head = _HEAD.fullmatch(await reader.readuntil(b"\r\n\r\n"))
        except asyncio.LimitOverrunError:
            head = None
        lengths = _LENGTH.findall(head[3]) if head else []
        if not head or len(lengths) > 1 or b"transfer-encoding:" in head[3].lower():
            return _Answer(400)
        length = int(lengths[0]) if lengths else 0
        if length > MOST_ASKED:
            return _Answer(413)
        async with asyncio.timeout(PATIENCE_S):
            body = await reader.readexactly(length)
        method, path = head[1].decode(), head[2].decode()
        return await asyncio.to_thread(self._clerk.answer, method, path, body, who)


async def _secured(
    connection: socket.socket, context: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_MOST_HEAD)
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        connection,
        ssl=context,
        ssl_handshake_timeout=PATIENCE_S,
        ssl_shutdown_timeout=PATIENCE_S,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _written(answer: _Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        f"Content-Type: {answer.kind}",
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
    )
    return "\r\n".join((*head, "", "")).encode() + answer.body


def _context(office: Office, now: float) -> ssl.SSLContext:
    """TLS 1.3, with a leaf and a key that never touch the disk."""
    key = create_key()
    leaf = issue_listener(office.authority, load_key(key).public_key(), now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # each node comes once
    with readable(office.chain(leaf)) as chain, readable(key) as secret:
        context.load_cert_chain(chain, secret)
    return context


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns
