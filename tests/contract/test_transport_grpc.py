"""What only a network has: ports, certificates on every call and block, lost connections."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from openfed.errors import CertificateError, OpenFedError, PolicyError, TransportError
from openfed.pki.authority import Enrolment
from openfed.pki.files import install, load_identity, make_request
from openfed.pki.office import open_office
from openfed.transport import crossing
from openfed.transport.address import split_address
from openfed.transport.environment import SETTINGS, grpc
from openfed.transport.grpc import GrpcLink, serve
from openfed.transport.retry import Policy, retrying
from openfed.wire.blocks import MOST_BLOCK
from openfed.wire.convert import decode_offset, encode
from openfed.wire.messages import (
    ENOUGH,
    Hello,
    Next,
    Orders,
    Pull,
    Push,
    Report,
    RunState,
    Stamp,
    Welcome,
)

STAMP = Stamp("fed", "run-1", "d" * 64, "op-1")
DIGEST = "e" * 64
MIB = 1 << 20


async def never():
    raise AssertionError("nothing is reported")


class Service:
    """Endless blobs, polls that last as long as told."""

    def __init__(self):
        self.polled = asyncio.Event()
        self.news = asyncio.Event()
        self.stored = 0
        self.ended = False
        self.greeted = []  # serials

    async def hello(self, peer, hello):
        if hello.facts.get("break"):
            raise KeyError("a secret detail")
        self.greeted.append(peer.serial)
        return Welcome(STAMP, RunState.RUNNING, 1.0)

    async def next(self, peer, next):
        self.polled.set()
        await self.news.wait()
        return Orders(STAMP, RunState.RUNNING, "", 1.0)

    async def pull(self, peer, pull):
        while True:
            yield b"x" * MIB

    async def push_offset(self, peer, push):
        return 0

    async def push_blocks(self, peer, push, offset, blocks):
        try:
            async for block in blocks:
                self.stored += len(block)
        finally:
            self.ended = True

    async def report(self, peer, report):
        raise NotImplementedError

    renew = report


class World:
    """What the server is told about time and admission."""

    def __init__(self):
        self.time = time.time()
        self.out = set()

    def now(self):
        return self.time

    def denied(self, peer):
        return peer.name in self.out


@asynccontextmanager
async def connected(cert, service, world, name="one"):
    identity = load_identity(cert, "aggregator")
    async with serve(
        service, identity, "127.0.0.1:0", now=world.now, denied=world.denied
    ) as server:
        link = GrpcLink(f"localhost:{server.port}", load_identity(cert, name))
        yield link
        await link.close()


def run(body, cert):
    async def main():
        service, world = Service(), World()
        async with connected(cert, service, world) as link:
            await asyncio.wait_for(body(service, world, link), 30)

    asyncio.run(main())


def expire(world):
    world.time += 31 * 86400


def deny(world):
    world.out.add("one")


CHANGES = pytest.mark.parametrize(
    ("change", "code"), [(expire, "C05"), (deny, "C18")], ids=["expired", "denied"]
)


@CHANGES
def test_an_open_connection_is_refused_on_its_next_call(cert, change, code):
    async def body(service, world, link):
        await link.hello(Hello(STAMP))
        change(world)
        with pytest.raises(CertificateError, match=f"^{code} .*'one'"):
            await link.hello(Hello(STAMP))

    run(body, cert)


@CHANGES
def test_a_held_poll_gets_no_orders_any_more(cert, change, code):
    async def body(service, world, link):
        poll = asyncio.create_task(link.next(Next(STAMP, 60.0)))
        await service.polled.wait()
        change(world)
        service.news.set()
        with pytest.raises(CertificateError, match=f"^{code} "):
            await poll

    run(body, cert)


@CHANGES
def test_a_pull_ends_within_the_blocks_in_flight(cert, change, code):
    async def body(service, world, link):
        blocks = link.pull(Pull(STAMP, DIGEST))
        await anext(blocks)
        change(world)
        with pytest.raises(CertificateError, match=f"^{code} "):
            for _ in range(64):  # without the check per block it would never end
                await anext(blocks)

    run(body, cert)


@CHANGES
def test_a_push_ends_at_the_next_block(cert, change, code):
    async def body(service, world, link):
        sent = 0

        async def blocks(offset):
            nonlocal sent
            yield b"x" * MIB
            while not service.stored:
                await asyncio.sleep(0.001)
            change(world)
            for _ in range(99):
                sent += 1
                yield b"x" * MIB

        with pytest.raises(CertificateError, match=f"^{code} "):
            await link.push(Push(STAMP, "ask", "upload"), blocks, never)
        assert service.stored == MIB
        assert sent < 99

    run(body, cert)


def test_a_fault_inside_the_service_shows_none_of_its_details(cert, caplog):
    async def body(service, world, link):
        with pytest.raises(TransportError, match="^T11 ") as caught:
            await link.hello(Hello(STAMP, {"break": "yes"}))
        assert caught.value.permanent
        assert "secret" not in str(caught.value)
        await link.hello(Hello(STAMP))  # and the service lives on

    run(body, cert)
    assert "a secret detail" in caplog.text


def test_a_port_in_use_is_named(cert):
    async def main():
        identity = load_identity(cert, "aggregator")
        async with serve(Service(), identity, "127.0.0.1:0") as server:
            with pytest.raises(TransportError, match=f"^T02 .*{server.port}") as caught:
                async with serve(Service(), identity, f"127.0.0.1:{server.port}"):
                    pass
            assert caught.value.permanent

    asyncio.run(main())


def test_an_address_of_another_machine_cannot_be_listened_on(cert):
    async def main():
        with pytest.raises(TransportError, match="^T03 .*[Cc]annot assign"):
            async with serve(Service(), load_identity(cert, "aggregator"), "192.0.2.1:50051"):
                pass

    asyncio.run(main())


def test_a_collaborator_cannot_serve(cert):
    async def main():
        with pytest.raises(CertificateError, match="^C09 "):
            async with serve(Service(), load_identity(cert, "one"), "127.0.0.1:0"):
                pass

    asyncio.run(main())


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("agg.example:50051", ("agg.example", 50051)),
        ("10.0.0.7:1", ("10.0.0.7", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses_are_read(address, parts):
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:x", "host:65536", "::1:5", "[::1]", "[host]:1"]
)
def test_addresses_that_are_none_are_refused(address):
    with pytest.raises(TransportError, match="^T13 ") as caught:
        split_address(address)
    assert caught.value.permanent


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def test_a_collaborator_that_starts_first_waits_for_the_aggregator(cert):
    async def main():
        port, service, tries = free_port(), Service(), []

        async def pause(seconds):
            tries.append(seconds)
            if len(tries) == 3:
                await stack.enter_async_context(
                    serve(service, load_identity(cert, "aggregator"), f"127.0.0.1:{port}")
                )

        link = GrpcLink(f"localhost:{port}", load_identity(cert, "one"))
        with pytest.raises(TransportError, match="^T05 ") as caught:
            await link.hello(Hello(STAMP))
        assert not caught.value.permanent
        async with AsyncExitStack() as stack:
            patient = retrying(link, Policy(), sleep=pause)
            assert (await patient.hello(Hello(STAMP))).state is RunState.RUNNING
            await link.close()
        assert len(tries) == 3

    asyncio.run(main())


def test_a_poll_survives_a_restart_of_the_aggregator(cert):
    async def main():
        port, identity = free_port(), load_identity(cert, "aggregator")
        first, second = Service(), Service()
        second.news.set()
        link = GrpcLink(f"localhost:{port}", load_identity(cert, "one"))
        faults = []

        async def pause(seconds):
            faults.append(seconds)
            await asyncio.sleep(0.02)

        patient = retrying(link, Policy(), sleep=pause)
        async with serve(first, identity, f"127.0.0.1:{port}"):
            poll = asyncio.create_task(patient.next(Next(STAMP, 60.0)))
            await first.polled.wait()
        async with serve(second, identity, f"127.0.0.1:{port}"):
            assert (await asyncio.wait_for(poll, 20)).state is RunState.RUNNING
            await link.close()
        assert faults

    asyncio.run(main())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"[" * 9999,
        b'{"class": "SystemExit", "code": "T12", "message": "x", "permanent": true}',
        b'{"class": "PolicyError", "code": "Z99", "message": "x", "permanent": true}',
        b'{"class": "PolicyError", "code": ["T12"], "message": "x", "permanent": true}',
        b'{"class": "PolicyError", "code": "T12", "message": 7, "permanent": true}',
        b'{"class": ["PolicyError"], "code": "T12", "message": "x", "permanent": true}',
    ],
    ids=range(9),
)
def test_an_error_that_cannot_be_understood_is_still_a_typed_one(data):
    found = crossing.unpack(data)
    assert (type(found), found.code, found.permanent) == (TransportError, "T11", True)


def test_errors_are_cut_and_cleaned_when_they_cross():
    packed = crossing.pack(PolicyError("T13", "\N{GRINNING FACE}" * 9999))
    assert len(packed) < 4300
    assert set(crossing.unpack(packed).message) == {"\N{GRINNING FACE}"}
    hostile = {"class": "PolicyError", "code": "T13", "message": "a\x1b[2Jb", "permanent": False}
    found = crossing.unpack(json.dumps(hostile).encode())
    assert found.message == "a\ufffd[2Jb"
    assert isinstance(found, OpenFedError)


def test_grpc_is_imported_after_its_environment_is_set():
    assert SETTINGS.items() <= os.environ.items()
    assert grpc.__name__ == "grpc"
    program = "import grpc, openfed.transport.environment"
    bare = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    done = subprocess.run([sys.executable, "-c", program], env=bare, capture_output=True, text=True)
    assert "T01  grpc was imported before GRPC_SSL_CIPHER_SUITES=" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", program], env=bare | SETTINGS, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("way", ["pull", "push"])
def test_a_transfer_cut_off_by_the_end_of_the_server_may_be_tried_again(cert, way):
    async def endless(offset):
        while True:
            yield b"x" * MIB

    async def transfer(link, begun):
        if way == "push":
            await link.push(Push(STAMP, "ask", "upload"), endless, never)
        async for _ in link.pull(Pull(STAMP, DIGEST)):
            begun.set()

    async def main():
        service, begun = Service(), asyncio.Event()
        async with serve(service, load_identity(cert, "aggregator"), "127.0.0.1:0") as server:
            link = GrpcLink(f"localhost:{server.port}", load_identity(cert, "one"))
            going = asyncio.create_task(transfer(link, begun))
            while not (begun.is_set() or service.stored):
                await asyncio.sleep(0.001)
        with pytest.raises(TransportError, match="^T0[59] ") as caught:
            await asyncio.wait_for(going, 20)
        assert not caught.value.permanent
        await link.close()

    asyncio.run(main())


@pytest.mark.parametrize("sent", [[], [b"x" * 99], [b"x", b"y" * MIB]], ids=len)
def test_an_upload_that_ends_without_its_end_is_refused(cert, sent):
    """What a client that is killed leaves: a half-closed stream is no end of an upload."""

    async def body(service, world, link):
        await link.hello(Hello(STAMP))
        call = link._channel.stream_stream("/openfed.v1.Federation/Push")()
        await call.write(encode(Push(STAMP, "ask", "upload")))
        assert decode_offset(await call.read()) == 0
        for block in sent:
            await call.write(block)
        await call.done_writing()
        assert await call.read() == b""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.details() == "W13"
        assert service.stored == sum(map(len, sent))

    run(body, cert)


@pytest.mark.parametrize("size", [MOST_BLOCK, MOST_BLOCK + 1])
def test_a_block_has_at_most_four_mebibytes(cert, size):
    async def body(service, world, link):
        await link.hello(Hello(STAMP))
        call = link._channel.stream_stream("/openfed.v1.Federation/Push")()
        await call.write(encode(Push(STAMP, "ask", "upload")))
        await call.read()
        await call.write(b"x" * size)
        await call.write(b"")
        await call.done_writing()
        assert await call.read() == b""
        if size > MOST_BLOCK:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.details() == "W12" and service.stored == 0
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.details() == "W13" and service.stored == size  # and no report

    run(body, cert)


@CHANGES
@pytest.mark.parametrize("way", ["push", "next"])
def test_a_peer_that_is_silent_is_cut_off(cert, change, code, way):
    """No block comes any more, and no answer is due: what is open ends all the same."""

    async def body(service, world, link):
        async def stalled(offset):
            yield b"x" * MIB
            await asyncio.Event().wait()

        await link.hello(Hello(STAMP))
        if way == "push":
            call = asyncio.create_task(link.push(Push(STAMP, "ask", "upload"), stalled, never))
            while not service.stored:
                await asyncio.sleep(0.001)
        else:
            call = asyncio.create_task(link.next(Next(STAMP, 60.0)))
            await service.polled.wait()
        begun = time.monotonic()
        change(world)
        if way == "push":  # the client reads only once it writes: look at the server's side
            while not service.ended:
                await asyncio.sleep(0.01)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            with pytest.raises(CertificateError, match=f"^{code} "):
                await link.hello(Hello(STAMP))
        else:
            with pytest.raises(CertificateError, match=f"^{code} "):
                await call
        assert time.monotonic() - begun < 2 * 5

    run(body, cert)


def renewed(cert, folder, name, role="collaborator", hosts=()):
    """The identity of a node whose certificate was issued anew, in a folder of its own."""
    shutil.copytree(cert, folder / "cert")
    office = open_office(folder / "cert")
    enrolment = Enrolment("fed", role, name, hosts)
    chain = office.certify(make_request(folder / "cert", name), enrolment, time.time())
    install(folder / "cert", name, chain, office.anchors())
    return load_identity(folder / "cert", name)


def test_a_link_shows_a_renewed_certificate_and_what_was_going_on_goes_on(cert, tmp_path):
    async def body(service, world, link):
        await link.hello(Hello(STAMP))
        blocks = link.pull(Pull(STAMP, DIGEST))
        await anext(blocks)
        poll = asyncio.create_task(link.next(Next(STAMP, 60.0)))
        await service.polled.wait()
        new = renewed(cert, tmp_path, "one")
        link.show(new)
        await link.hello(Hello(STAMP))
        for _ in range(8):
            assert len(await anext(blocks)) == MIB
        await blocks.aclose()
        service.news.set()
        assert (await poll).state is RunState.RUNNING
        before = load_identity(cert, "one").peer.serial
        assert service.greeted == [before, new.peer.serial] and before != new.peer.serial

    run(body, cert)


def test_a_server_shows_a_renewed_certificate_to_whoever_comes_next(cert, tmp_path):
    async def main():
        first = load_identity(cert, "aggregator")
        shown = [first]
        async with serve(Service(), first, "127.0.0.1:0", current=lambda: shown[0]) as server:
            address = f"localhost:{server.port}"
            old = GrpcLink(address, load_identity(cert, "one"))
            await old.hello(Hello(STAMP))
            shown[0] = renewed(cert, tmp_path, "aggregator", "aggregator", ("localhost",))
            new = GrpcLink(address, load_identity(cert, "two"))
            await new.hello(Hello(STAMP))
            await old.hello(Hello(STAMP))
            assert await asyncio.to_thread(serial_at, server.port, cert) == shown[0].peer.serial
            await old.close()
            await new.close()

    asyncio.run(main())


def serial_at(port, cert):
    context = ssl.create_default_context(cafile=cert / "authority.pem")
    context.load_cert_chain(cert / "one" / "chain.pem", cert / "one" / "node.key")
    with (
        socket.create_connection(("localhost", port), 5) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        return int(tls.getpeercert()["serialNumber"], 16)


@pytest.mark.parametrize("way", ["pull", "push offset", "push verdict"])
def test_a_transfer_that_stands_still_is_cut_and_may_be_tried_again(cert, way):
    """The aggregator is there, and does nothing: no side waits for ever."""

    class Still(Service):
        async def pull(self, peer, pull):
            yield b"x"
            await asyncio.Event().wait()

        async def push_offset(self, peer, push):
            if way == "push offset":
                await asyncio.Event().wait()
            return ENOUGH

        async def report(self, peer, report):
            await asyncio.Event().wait()

    async def none(offset):
        return
        yield b""

    async def report():
        return Report(STAMP, "ask", "d" * 64, 1)

    async def main():
        identity = load_identity(cert, "aggregator")
        async with serve(Still(), identity, "127.0.0.1:0") as server:
            address, one = f"localhost:{server.port}", load_identity(cert, "one")
            link = GrpcLink(address, one, stall_s=0.3)
            with pytest.raises(TransportError, match="^T12 .*for 0.3 s") as caught:
                if way == "pull":
                    async for _ in link.pull(Pull(STAMP, "d" * 64, 0)):
                        pass
                else:
                    await link.push(Push(STAMP, "ask", "upload"), none, report)
            assert not caught.value.permanent
            await link.close()

    asyncio.run(asyncio.wait_for(main(), 30))


def test_an_upload_that_stands_still_is_cut_by_the_aggregator(cert):
    async def main():
        service, identity = Service(), load_identity(cert, "aggregator")
        async with serve(service, identity, "127.0.0.1:0", stall_s=0.3) as server:
            link = GrpcLink(f"localhost:{server.port}", load_identity(cert, "one"))
            await link.hello(Hello(STAMP))
            call = link._channel.stream_stream("/openfed.v1.Federation/Push")()
            await call.write(encode(Push(STAMP, "ask", "upload")))
            await call.read()
            await call.write(b"x" * 1000)
            assert await call.read() == b""
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call.read()
            assert caught.value.details() == "W15" and service.stored == 1000 and service.ended
            await link.close()

    asyncio.run(asyncio.wait_for(main(), 30))
