"""Who begins, and does not go on: a call that brings nothing is ended, and can be made again."""

import asyncio
from contextlib import asynccontextmanager

import pytest

import openfed.transport.grpc as transport
from openfed.errors import TransportError
from openfed.pki.files import ensure_federation, load_identity
from openfed.transport.environment import grpc
from openfed.transport.grpc import LEAST, MOST_CALLS, SERVICE, GrpcLink, serve
from openfed.wire.convert import encode
from openfed.wire.messages import Hello, Next, Push, Ruling
from tests.contract.test_cut_transfers import open_desk


@pytest.fixture(scope="module")
def cert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cert")
    ensure_federation(folder, "fed", ("localhost",), ("one", "two"), transport.time.time())
    return folder


@asynccontextmanager
async def served(tmp_path, cert, **patience):
    """A real aggregator with an open ask; a raw channel and a link of "one", a link of "two"."""
    async with open_desk(tmp_path) as desk:
        node = load_identity(cert, "aggregator")
        async with serve(desk.aggregator, node, "127.0.0.1:0", **patience) as server:
            one = load_identity(cert, "one")
            credentials = grpc.ssl_channel_credentials(
                one.authority_pem, one.key_pem, one.chain_pem
            )
            address = f"localhost:{server.port}"
            links = [GrpcLink(address, load_identity(cert, name)) for name in ("one", "two")]
            async with grpc.aio.secure_channel(address, credentials) as channel:
                yield desk, channel, *links
            for link in links:
                await link.close()


def run(tmp_path, cert, body, **patience):
    async def main():
        async with asyncio.timeout(60), served(tmp_path, cert, **patience) as parts:
            await body(*parts)

    asyncio.run(main())


async def how_it_ends(call) -> str:
    """The code that the server ends a call with."""
    while True:
        try:
            if await call.read() is grpc.aio.EOF:
                return await call.details()
        except grpc.aio.AioRpcError as error:
            return error.details()


async def begun(desk, channel, name):
    """An upload that has been opened, and whose offset is known."""
    call = channel.stream_stream(f"/{SERVICE}/Push")()
    await call.write(encode(Push(desk.stamp, "ask1", name)))
    await call.read()
    return call


@pytest.mark.parametrize("sent", [0, 1000, LEAST + 1000])
def test_an_upload_that_stalls_is_ended_and_goes_on_where_it_was(tmp_path, cert, sent):

    async def body(desk, channel, one, two):
        call = await begun(desk, channel, "upload")
        if sent:
            await call.write(desk.reply[:sent])
        assert await how_it_ends(call) == "W15"
        assert desk.aggregator.spool.grown("upload", "one") == sent
        assert (await desk.deliver(one)).ruling is Ruling.ACCEPTED
        assert desk.read == len(desk.reply) - sent
        desk.counted_once()

    run(tmp_path, cert, body, stall_s=0.3)


def test_one_byte_at_a_time_is_not_enough(tmp_path, cert, monkeypatch):
    monkeypatch.setattr(transport, "ANSWER_S", 0.5)  # for what was on its way

    async def body(desk, channel, one, two):
        call = await begun(desk, channel, "upload")
        ended = asyncio.create_task(how_it_ends(call))
        written = 0
        while not ended.done():
            try:
                await call.write(b"x")
                written += 1
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                break
            await asyncio.sleep(0.02)
        assert await ended == "W15"
        assert 1 < written < LEAST

    run(tmp_path, cert, body, stall_s=0.5)


def test_an_upload_without_its_report_is_ended(tmp_path, cert):

    async def body(desk, channel, one, two):
        call = await begun(desk, channel, "upload")
        await call.write(b"some bytes")
        await call.write(b"")
        assert await how_it_ends(call) == "W15"

    run(tmp_path, cert, body, stall_s=1.0)


@pytest.mark.parametrize("method", ["Hello", "Next", "Report", "Renew", "Pull", "Push"])
def test_a_call_without_its_message_is_ended(tmp_path, cert, monkeypatch, method):
    monkeypatch.setattr(transport, "ANSWER_S", 0.2)

    async def body(desk, channel, one, two):
        call = channel.stream_stream(f"/{SERVICE}/{method}")()
        await call.wait_for_connection()
        assert await how_it_ends(call) == "W15"

    run(tmp_path, cert, body)


def test_who_has_too_many_calls_gets_no_more_and_the_others_notice_nothing(tmp_path, cert):
    async def body(desk, channel, one, two):
        standing = []
        for number in range(MOST_CALLS):
            standing.append(await begun(desk, channel, f"upload-{number}"))
        with pytest.raises(TransportError, match="^W16 ") as caught:
            await one.hello(Hello(desk.stamp))
        assert not caught.value.permanent
        assert (await two.next(Next(desk.stamp, 0.0))).assignment
        for call in standing:
            call.cancel()
        async with asyncio.timeout(10):
            while True:
                try:
                    await one.hello(Hello(desk.stamp))
                    break
                except TransportError:
                    await asyncio.sleep(0.01)

    run(tmp_path, cert, body)
