"""gRPC over TLS 1.3, both sides authenticated.

The methods of `federation.proto` are registered as raw bytes: control messages are converted by
`wire.convert`, and blocks of tensors never pass through protobuf.
"""

import asyncio
import errno
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

from openfed.errors import CertificateError, OpenFedError, TransportError, WireError, exhausted
from openfed.failpoints import failpoint
from openfed.parse import Proxy, join_address
from openfed.pki.leaf import Identity, check_peer, inspect
from openfed.pki.peer import AGGREGATOR, COLLABORATOR
from openfed.transport import crossing
from openfed.transport.address import split_address
from openfed.transport.base import Blocks, Reporting, Service
from openfed.transport.crowd import most_connections, tell_when_full
from openfed.transport.environment import grpc
from openfed.transport.probe import diagnose
from openfed.transport.proxy import authorization
from openfed.transport.turns import Turns
from openfed.wire.blocks import MOST_BLOCK, ending, read_blocks, write_blocks
from openfed.wire.convert import decode, decode_offset, encode, encode_offset
from openfed.wire.messages import (
    Hello,
    Next,
    Orders,
    Peer,
    Pull,
    Push,
    Renew,
    Renewed,
    Report,
    Verdict,
    Welcome,
)

SERVICE = "openfed.v1.Federation"
ANSWER_S = 60.0
"""How long a call may take beyond what it asks for."""
HELLO_S = 6.0
"""A greeting asks for nothing: who starts a node is told within ten seconds what it waits for."""
DIAGNOSIS_S = 8.0
"""For the probe as a whole; a name server may be silent for much longer."""
GRACE_S = 0.5
"""How long calls in flight may go on when the server ends."""
LOOK_S = 1.0
"""How often it is asked whether the peers of open calls are still admitted: a block may never
come."""
MOST_CALLS = 32
"""Calls of one peer at once. An honest one has three; those of a lost connection linger."""
STALL_S, LEAST = 600.0, 64 << 10
"""A transfer that stands still for so long, or an upload that brings fewer bytes in that time, is
cut, to be tried again. A line that is gone is found out long before, by pings; a whole block is
seen at once, and takes minutes on the worst of lines."""
IDLE_S = 120.0
"""A connection without a call is ended: those that come are limited in number."""

WINDOW = 128 << 10
"""Bytes of one stream that may come before they are asked for. What is asked for is a whole block,
so on a line with a delay of 100 ms a transfer still moves 20 MB/s."""

M = TypeVar("M")
A = TypeVar("A")
Status = tuple[Any, str | None, Sequence[tuple[str, str | bytes]]]

logger = logging.getLogger(__name__)

_BOTH = (
    ("grpc.max_receive_message_length", MOST_BLOCK + 1024),
    ("grpc.max_send_message_length", MOST_BLOCK + 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),  # it widens windows, and so memory, with every fast peer
    ("grpc.http2.lookahead_bytes", WINDOW),
    ("grpc.experimental.tcp_max_read_chunk_size", 64 << 10),  # else up to 4 MiB a connection
)
_SERVER = (
    *_BOTH,
    ("grpc.so_reuseport", 0),  # two aggregators on one port would share its peers
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_concurrent_streams", 128),
    ("grpc.max_connection_idle_ms", int(1000 * IDLE_S)),
)
_CLIENT = (
    *_BOTH,
    ("grpc.enable_http_proxy", 0),  # nor what the environment says about proxies: see `_way`
    ("grpc.enable_retries", 0),  # `retry` does that, and says so in the stamp
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),  # never another identity's connection
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),  # who comes back may be elsewhere
)


# -- the aggregator's side -------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    port: int


def _warned(fault: TransportError) -> None:
    logger.warning("%s", fault)


@asynccontextmanager
async def serve(
    service: Service,
    identity: Identity,
    listen: str,
    *,
    now: Callable[[], float] = time.time,
    denied: Callable[[Peer], bool] = lambda peer: False,
    current: Callable[[], Identity] | None = None,
    told: Callable[[TransportError], None] = _warned,
    stall_s: float = STALL_S,
) -> AsyncGenerator[Server, None]:
    """Serves until the block ends. `now` in seconds since the epoch; `denied` is asked per call
    and block, and every `LOOK_S` of open calls; `current`, at every handshake, for the identity to
    show once it is another than `identity`; `told` hears, now and then, that nobody else gets in:
    there are as many connections as this process can have (T19); a transfer is cut that stands
    still for `stall_s`.

    Raises T02 (port in use), T03 (cannot listen), T13 (address), C09 (not an aggregator).
    """
    split_address(listen)
    if identity.peer.role != AGGREGATOR:
        raise CertificateError("C09", f"{identity.peer.name!r} has no certificate of an aggregator")
    most = most_connections()
    options = (*_SERVER, ("grpc.max_allowed_incoming_connections", most))
    server = grpc.aio.server(options=options)
    endpoint = _Endpoint(service, identity.peer.federation, now, denied, Turns(), stall_s)
    server.add_generic_rpc_handlers((endpoint.methods(),))
    credentials = _server_credentials(identity, current or (lambda: identity))
    try:
        port = server.add_secure_port(listen, credentials)
    except RuntimeError as error:
        raise _cannot_listen(listen) from error
    await server.start()
    looking = asyncio.create_task(endpoint.look())
    counting = asyncio.create_task(tell_when_full(most, told))
    try:
        yield Server(port)
    finally:
        looking.cancel()
        counting.cancel()
        await server.stop(GRACE_S)


def _server_credentials(first: Identity, current: Callable[[], Identity]) -> Any:
    """What handshakes use; those of open connections stay as they are."""
    shown = first

    def configuration(identity: Identity) -> Any:
        pair = (identity.key_pem, identity.chain_pem)
        return grpc.ssl_server_certificate_configuration([pair], identity.authority_pem)

    def fetch() -> Any:  # in a thread of gRPC; None: as before
        nonlocal shown
        if (found := current()) == shown:
            return None
        shown = found
        return configuration(found)

    return grpc.dynamic_ssl_server_credentials(configuration(first), fetch, True)


def _cannot_listen(listen: str) -> TransportError:
    """gRPC does not say why it could not bind; the operating system does."""
    host, port = split_address(listen)
    reason = "no reason given"
    try:
        with socket.create_server((host, port), family=_family(host), reuse_port=False):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE:
            return TransportError("T02", f"{listen}: the port is in use", permanent=True)
    return TransportError("T03", f"cannot listen on {listen}: {reason}", permanent=True)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


_inspect = lru_cache(maxsize=4096)(inspect)


@dataclass(frozen=True)
class _Endpoint:
    service: Service
    federation: str
    now: Callable[[], float]
    denied: Callable[[Peer], bool]
    turns: Turns
    stall_s: float
    calls: dict["asyncio.Task[Any]", Peer] = field(default_factory=dict)
    faults: dict["asyncio.Task[Any]", CertificateError] = field(default_factory=dict)

    async def look(self) -> None:
        """End the calls of peers that have been revoked, or whose certificate has expired."""
        while True:
            await asyncio.sleep(LOOK_S)
            for call, peer in list(self.calls.items()):
                try:
                    self._check(peer)
                except CertificateError as error:
                    self.faults.setdefault(call, error)
                    call.cancel()

    @asynccontextmanager
    async def _called(self, context: Any) -> AsyncGenerator[Peer, None]:
        """The peer of a call, which ends with an error for it to read, also when it is cut."""
        call = asyncio.current_task()
        assert call
        async with _crossing(context):
            peer = self._peer(context)
            self._check_calls(peer)
            self.calls[call] = peer
            try:
                yield peer
            except asyncio.CancelledError:
                if (fault := self.faults.get(call)) is None:
                    raise  # the peer has gone, or the server ends
                call.uncancel()
                raise fault from None
            finally:
                del self.calls[call]
                self.faults.pop(call, None)

    def _check_calls(self, peer: Peer) -> None:
        if sum(each.name == peer.name for each in self.calls.values()) >= MOST_CALLS:
            raise TransportError("W16", f"{peer.name} has {MOST_CALLS} calls open already")

    def methods(self) -> Any:
        """On the wire most of these are unary. Here each reads its message itself: once it is
        known who calls, and with patience that ends."""
        unary = grpc.stream_unary_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Hello": unary(self._unary(Hello, self.service.hello)),
                "Next": unary(self._unary(Next, self.service.next)),
                "Report": unary(self._unary(Report, self.service.report)),
                "Renew": unary(self._unary(Renew, self.service.renew)),
                "Pull": grpc.stream_stream_rpc_method_handler(self._pull),
                "Push": grpc.stream_stream_rpc_method_handler(self._push),
            },
        )

    def _unary(self, kind: type[M], method: Callable[[Peer, M], Awaitable[A]]) -> Any:
        async def handle(_: object, context: Any) -> bytes:
            async with self._called(context) as peer:
                answer = await method(peer, decode(kind, await _message(context, kind)))
                self._check(peer)  # the call may have been held for long
                failpoint("call.answer")
                return encode(answer)
            raise AssertionError("unreachable: _crossing aborts")

        return handle

    async def _pull(self, _: object, context: Any) -> None:
        async with self._called(context) as peer:
            pull = decode(Pull, await _message(context, Pull))
            framed = write_blocks(self.service.pull(peer, pull))
            async with ending(framed):
                while True:
                    async with self.turns.one():
                        block = await anext(framed, None)
                        if block is None:
                            break
                        self._check(peer)
                        await self._moving(peer, context.write(block))
                        failpoint("pull.block")
                        del block  # or each of many streams would hold one while it waits

    async def _push(self, _: object, context: Any) -> None:
        async with self._called(context) as peer:
            push = decode(Push, await _message(context, Push))
            offset = await self.service.push_offset(peer, push)
            await context.write(encode_offset(offset))
            failpoint("push.offset")
            try:
                verdict = await self._taken(peer, push, offset, context)
            except asyncio.CancelledError:
                if asyncio.current_task() in self.faults:
                    await context.write(b"")  # PushEnd, for a client that is about to write
                raise
            except BaseException:
                await _end_of_push(context)
                raise
            if verdict is None:
                await _end_of_push(context)
            else:
                failpoint("push.verdict")
                await context.write(encode(verdict))

    async def _taken(self, peer: Peer, push: Push, offset: int, context: Any) -> Verdict | None:
        """The verdict on an upload and its report; None if the rest of it is not wanted."""
        blocks = read_blocks(self._received(peer, context))
        async with ending(blocks):
            await self.service.push_blocks(peer, push, offset, blocks)
            if await anext(blocks, None) is not None:
                return None
        told = f"no report followed its upload in {self.stall_s:g} s"
        data = await _within(context.read(), self.stall_s, told, "W15")  # sent once it is durable
        if data is grpc.aio.EOF:
            raise WireError("W13", "an upload ended without its report")
        return await self.service.report(peer, decode(Report, data))

    async def _received(self, peer: Peer, context: Any) -> AsyncIterator[bytes]:
        clock = asyncio.get_running_loop().time
        since, got = clock(), 0
        while True:
            async with self.turns.one():
                told = f"expected {LEAST} bytes of an upload in {self.stall_s:g} s, got {got}"
                left = since + self.stall_s - clock()
                block = await _within(context.read(), left, told, "W15")
                if block is grpc.aio.EOF:
                    raise WireError("W13", "an upload ended without its end")
                if not block:
                    break
                self._check(peer)
                got += len(block)
                if got >= LEAST:
                    since, got = clock(), 0
                yield block
                del block

    async def _moving(self, peer: Peer, part: Awaitable[A]) -> A:
        told = f"{peer.name}: nothing of a transfer came or went for {self.stall_s:g} s"
        return await _within(part, self.stall_s, told)

    def _peer(self, context: Any) -> Peer:
        """Who calls: from the certificate of this connection, nothing else."""
        (pem,) = context.auth_context()["x509_pem_cert"]
        peer = _inspect(pem)
        self._check(peer)
        return peer

    def _check(self, peer: Peer) -> None:
        check_peer(
            peer,
            federation=self.federation,
            role=COLLABORATOR,
            now=self.now(),
            denied=self.denied,
        )


async def _message(context: Any, kind: type) -> bytes:
    """The message that a call begins with."""
    told = f"{kind.__name__}: expected a message in {ANSWER_S:g} s"
    data = await _within(context.read(), ANSWER_S, told, "W15")
    if data is grpc.aio.EOF:
        raise WireError("W10", f"{kind.__name__}: expected one, found the end of the stream")
    assert isinstance(data, bytes)
    return data


async def _end_of_push(context: Any) -> None:
    """Tells the client to send no more, and waits for it: a client whose write fails because the
    call has ended never learns why (grpc.aio puts a status of its own in place of ours)."""
    await context.write(b"")  # PushEnd
    with suppress(TimeoutError):
        async with asyncio.timeout(ANSWER_S):
            while await context.read() is not grpc.aio.EOF:
                pass


@asynccontextmanager
async def _crossing(context: Any) -> AsyncGenerator[None, None]:
    """Ends the call with what was raised, as the other side will raise it."""
    failure: OpenFedError
    try:
        yield
        return
    except OpenFedError as error:
        failure = error
        if isinstance(error, CertificateError):
            logger.warning("refused: %s", error)
    except Exception as error:
        logger.exception("a call failed in a way that was not foreseen")
        # what the machine did (a full disk, no descriptor left) may be over when it is tried again
        lasts = exhausted(error) is None
        failure = TransportError("T11", "the aggregator failed; its log says why", permanent=lasts)
    await context.abort(
        grpc.StatusCode.ABORTED, failure.code, ((crossing.METADATA, crossing.pack(failure)),)
    )


# -- the collaborator's side -----------------------------------------------------------------------


class GrpcLink:
    """A `Link` over one connection. Built inside a running event loop."""

    def __init__(
        self,
        address: str,
        identity: Identity,
        *,
        server_name: str | None = None,
        proxy: Proxy | None = None,
        now: Callable[[], float] = time.time,
        stall_s: float = STALL_S,
    ) -> None:
        """`server_name`: the name that the certificate must have, if not the dialled one; `proxy`:
        what alone is dialled, to connect to the address; a transfer that stands still for `stall_s`
        is cut."""
        split_address(address)
        self._address, self._identity, self._server_name = address, identity, server_name
        self._proxy, self._now, self._stall_s = proxy, now, stall_s
        self._verified = False
        self._verifying = asyncio.Lock()
        self._channel, self._draining = self._dialled(identity), set[asyncio.Task[None]]()

    def _dialled(self, identity: Identity) -> Any:
        credentials = grpc.ssl_channel_credentials(
            identity.authority_pem, identity.key_pem, identity.chain_pem
        )
        target, way = _way(self._address, self._server_name, self._proxy)
        return grpc.aio.secure_channel(f"dns:///{target}", credentials, options=(*_CLIENT, *way))

    def show(self, identity: Identity) -> None:
        """From now on dial with another certificate; calls in flight end on the old connection."""
        left = max(0.0, self._identity.peer.not_after - self._now())
        old = asyncio.create_task(self._channel.close(left))
        self._draining.add(old)
        old.add_done_callback(self._draining.discard)
        self._identity, self._channel = identity, self._dialled(identity)

    async def hello(self, hello: Hello) -> Welcome:
        return await self._unary("Hello", hello, Welcome, HELLO_S)

    async def next(self, next: Next) -> Orders:
        return await self._unary("Next", next, Orders, next.wait_s + ANSWER_S)

    async def report(self, report: Report) -> Verdict:
        return await self._unary("Report", report, Verdict, ANSWER_S)

    async def renew(self, renew: Renew) -> Renewed:
        return await self._unary("Renew", renew, Renewed, ANSWER_S)

    async def pull(self, pull: Pull) -> Blocks:
        await self._verify_server()
        call = self._channel.unary_stream(f"/{SERVICE}/Pull")(encode(pull))
        try:
            async with ending(read_blocks(self._read_all(call))) as blocks:
                async for block in blocks:
                    yield block
        except grpc.aio.AioRpcError as error:
            raise await self._explained(_status(error)) from error
        finally:
            call.cancel()

    async def push(self, push: Push, blocks: Callable[[int], Blocks], report: Reporting) -> Verdict:
        await self._verify_server()
        call = self._channel.stream_stream(f"/{SERVICE}/Push")()
        try:
            await self._moving(call.write(encode(push)))
            offset = decode_offset(await self._moving(_read(call)))
            answer = await self._send(call, write_blocks(blocks(offset)), report)
        except grpc.aio.AioRpcError as error:
            raise await self._explained(_status(error)) from error
        except asyncio.InvalidStateError as error:  # a write after the end of the call
            status = await call.code(), await call.details(), await call.trailing_metadata()
            raise await self._explained(status) from error
        finally:
            call.cancel()
        return decode(Verdict, answer) if answer else await self.report(await report())

    async def _send(self, call: Any, framed: AsyncIterator[bytes], report: Reporting) -> bytes:
        """Sends all blocks and the report, or until the server wants no more.

        The answer: a Verdict; or nothing, where the server took no report and its status is OK.
        """
        ended = asyncio.create_task(_read(call))  # Verdict, or PushEnd
        try:
            async with ending(framed):
                async for block in framed:
                    if ended.done():
                        break
                    await self._moving(call.write(block))
                    failpoint("push.block")
                else:
                    await self._moving(call.write(b""))
                    said = encode(await report())
                    if not ended.done():
                        await self._moving(call.write(said))
            await call.done_writing()
            answer = await self._moving(ended)
            await self._moving(call.read())  # raises the status unless it is OK
            return answer
        finally:
            ended.cancel()
            await asyncio.gather(ended, return_exceptions=True)

    async def _read_all(self, call: Any) -> AsyncIterator[bytes]:
        while (block := await self._moving(call.read())) is not grpc.aio.EOF:
            yield block

    async def _moving(self, part: Awaitable[A]) -> A:
        told = f"{self._address}: a transfer stood still for {self._stall_s:g} s"
        return await _within(part, self._stall_s, told)

    async def close(self) -> None:
        for old in self._draining:
            old.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        await self._channel.close()

    async def _unary(self, name: str, message: object, kind: type[A], timeout_s: float) -> A:
        await self._verify_server()
        try:
            method = self._channel.unary_unary(f"/{SERVICE}/{name}")
            data = await method(encode(message), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise await self._explained(_status(error)) from error
        return decode(kind, data)

    async def _verify_server(self) -> None:
        """Before the first call, and again after a lost connection."""
        async with self._verifying:
            if not self._verified:
                if cause := await self._diagnosis():
                    raise cause
                self._verified = True

    async def _diagnosis(self) -> TransportError | CertificateError | None:
        probe = partial(diagnose, self._address, self._identity, self._now())
        try:
            async with asyncio.timeout(DIAGNOSIS_S):
                return await _unawaited(
                    partial(probe, server_name=self._server_name, proxy=self._proxy)
                )
        except TimeoutError:
            told = f"{self._address}: neither name nor address answered in {DIAGNOSIS_S:.0f} s"
            told += f", through the proxy {self._proxy}" if self._proxy else ""
            return TransportError("T06", told)

    async def _explained(self, status: Status) -> OpenFedError:
        """What the server raised; else what the probe finds; else what gRPC says."""
        code, details, metadata = status
        for key, value in metadata:
            if key == crossing.METADATA and isinstance(value, bytes):
                return crossing.unpack(value)
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL):
            self._verified = False
            cause = await self._diagnosis()
            return cause or TransportError("T09", f"{self._address}: {details}")
        known, permanent = _STATUS.get(code, ("T09", False))
        text = f"{self._address}: {code.name.lower()}: {details}"
        return TransportError(known, text, permanent=permanent)


def _way(
    address: str, name: str | None, proxy: Proxy | None
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """What a channel dials, and its options for the rest of the way to `address`.

    gRPC's own argument for proxies (`grpc.http_proxy`) gives way to `no_proxy` of the environment;
    what it makes of it, which this says itself, does not.
    """
    if proxy is None:
        return address, (("grpc.ssl_target_name_override", name),) if name else ()
    host, port = split_address(address)
    way = [("grpc.http_connect_server", join_address(host, port))]
    way.append(("grpc.ssl_target_name_override", name or host))
    if known := authorization(proxy):
        way.append(("grpc.http_connect_headers", f"Proxy-Authorization:{known}"))
    return join_address(proxy.host, proxy.port), tuple(way)


_STATUS: dict[Any, tuple[str, bool]] = {
    grpc.StatusCode.DEADLINE_EXCEEDED: ("T12", False),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("W10", True),  # a message beyond the limit
    grpc.StatusCode.UNIMPLEMENTED: ("T10", True),
}
"""Status that gRPC itself makes -> code, permanent."""


async def _within(part: Awaitable[A], seconds: float, told: str, code: str = "T12") -> A:
    """Raises: TransportError of this code, transient: it takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await part
    except TimeoutError:
        raise TransportError(code, told) from None


async def _unawaited(work: Callable[[], A]) -> A:
    """In a thread that no exit waits for: a probe of a silent address takes seconds."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[A] = loop.create_future()

    def deliver(give: Callable[[Any], None], what: Any) -> None:
        if not done.done():
            give(what)

    def run() -> None:
        answer: tuple[Callable[[Any], None], Any]
        try:
            answer = done.set_result, work()
        except Exception as error:  # noqa: BLE001 (raised again where it is awaited)
            answer = done.set_exception, error
        with suppress(RuntimeError):  # the loop is gone, and with it whoever asked
            loop.call_soon_threadsafe(deliver, *answer)

    threading.Thread(target=run, daemon=True).start()
    return await done


def _status(error: Any) -> Status:
    return error.code(), error.details(), error.trailing_metadata() or ()


async def _read(call: Any) -> bytes:
    data = await call.read()
    if data is grpc.aio.EOF:
        raise TransportError("T09", "the aggregator ended the call before its answer")
    assert isinstance(data, bytes)
    return data
