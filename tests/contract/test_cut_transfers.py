"""Transfers that are cut: they go on where they were, and what they carry counts once.

The service is the real aggregator. It is cut off inside (both transports), and by a proxy that
resets the TCP connection under gRPC.
"""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
from blake3 import blake3

from openfed.ask.machine import Ask
from openfed.codec.chain import Chain
from openfed.codec.packet import Head, packet_blocks
from openfed.errors import TransportError
from openfed.node.aggregator import Aggregator
from openfed.pki.files import load_identity
from openfed.plan.load import load_plan
from openfed.plan.lock import make_lock
from openfed.store.journal import Journal
from openfed.store.spool import Spool
from openfed.tensors.frame import Held, blocks, digest
from openfed.tensors.record import Record, signature_of
from openfed.transport.grpc import GrpcLink, serve
from openfed.transport.retry import Policy, retrying
from openfed.wire.messages import (
    BLOCK,
    Assignment,
    Blob,
    Payload,
    Pull,
    Push,
    Report,
    Ruling,
    Stamp,
)

PLAN = """
federation: fed
name: toy
rounds: 1
collaborators: [one, two]
task_runner: {numpy: {train: "src.toy:f", validate: "src.toy:f", shapes: {w: [2, 1000000]}}}
data_loader: "src.toy:D"
"""
MODEL = {"w": np.random.default_rng(0).normal(size=(2, 1_000_000)).astype(np.float32)}  # 8 MB
ENDED = "between the last byte and the answer"
CUTS = pytest.mark.parametrize("place", [0.01, 0.5, 0.99, ENDED])


async def now(seconds):
    """No pause between two attempts."""


@dataclass
class Cut:
    """A service that fails once: after some bytes of a transfer, or when it is over."""

    service: Aggregator
    after: float  # bytes of the first transfer; infinite: when it is over
    moved: int = 0  # bytes of tensors that came here, or were given away
    cuts: int = 0

    def __getattr__(self, name):
        return getattr(self.service, name)

    def cut(self):
        self.cuts += 1
        raise TransportError("T09", "cut")

    async def counted(self, blocks):
        async for block in blocks:
            if not self.cuts and self.moved + len(block) > self.after:
                self.cut()
            self.moved += len(block)
            yield block

    async def push_blocks(self, peer, push, offset, blocks):
        await self.service.push_blocks(peer, push, offset, self.counted(blocks))
        if not self.cuts:
            self.cut()

    async def pull(self, peer, pull):
        async for block in self.counted(self.service.pull(peer, pull)):
            yield block
        if not self.cuts:
            self.cut()


@dataclass
class Desk:
    """An aggregator with one open ask, and what collaborator "one" answers to it."""

    aggregator: Aggregator
    stamp: Stamp
    model: str
    size: int  # bytes of the model
    reply: bytes
    read: int = 0  # bytes that were read from the reply to be sent
    fetched: int = 0

    async def blocks(self, offset):
        while offset < len(self.reply):
            block = self.reply[offset : offset + BLOCK]
            self.read += len(block)
            yield block
            offset += len(block)

    async def deliver(self, link):
        """As an agent does that knows the digest only at the end."""
        link = retrying(link, Policy(), sleep=now)

        async def said():
            return Report(self.stamp, "ask1", blake3(self.reply).hexdigest(), len(self.reply))

        return await link.push(Push(self.stamp, "ask1", "upload"), self.blocks, said)

    async def fetch(self, link):
        link = retrying(link, Policy(), sleep=now)
        found = []
        async for block in link.pull(Pull(self.stamp, self.model)):
            self.fetched += len(block)
            found.append(bytes(block))
        return b"".join(found)

    def counted_once(self):
        (reply,) = self.aggregator.journal.ask("ask1").replies
        assert (reply.collaborator, reply.code) == ("one", "")
        whole = self.aggregator.spool.path(reply.digest, "one")
        assert whole.read_bytes() == self.reply
        assert not list(self.aggregator.spool.growing.iterdir())


@asynccontextmanager
async def open_desk(tmp_path):
    for folder in ("plan", "src"):
        (tmp_path / folder).mkdir()
    (tmp_path / "src" / "toy.py").write_text(
        "class D:\n    def __init__(self, source): ...\ndef f(record, data, settings): ...\n"
    )
    (tmp_path / "plan" / "plan.yaml").write_text(PLAN)
    plan = load_plan(tmp_path / "plan" / "plan.yaml")
    lock = make_lock(plan, {}, digest(Record(MODEL)), signature_of(MODEL))
    journal, spool = Journal(tmp_path / "journal.sqlite"), Spool(tmp_path)
    aggregator = Aggregator(lock, "r1", journal, spool, lambda kind, fields: None)
    model, size = spool.put(blocks(Record(MODEL)))
    journal.open_ask("ask1", 1, 0, "train")
    payload = Payload("model", model, size, (Blob(model, size),))
    assignment = Assignment("ask1", "train", 1, {}, (payload,), True, 1 << 30)
    await aggregator._offer(Ask("ask1", ("one", "two"), 2), assignment, signature_of(MODEL))
    head = Head(signature_of(MODEL), (Chain(),), {"n": (1.0,)}, model)
    reply = b"".join(bytes(block) for block in packet_blocks(head, Held(Record(MODEL))))
    yield Desk(aggregator, Stamp("fed", "r1", lock.digest, "op"), model, size, reply)
    journal.close()


def at(place, size):
    return float("inf") if place == ENDED else place * size


@CUTS
def test_an_upload_that_is_cut_resends_at_most_one_block_and_counts_once(
    transport, tmp_path, place
):
    async def main():
        async with open_desk(tmp_path) as desk:
            service = Cut(desk.aggregator, at(place, len(desk.reply)))
            async with transport(service) as connect:
                link = connect("one")
                assert (await desk.deliver(link)).ruling is Ruling.ACCEPTED
                assert (await desk.deliver(link)).ruling is Ruling.DUPLICATE
            assert service.cuts == 1
            assert len(desk.reply) <= service.moved <= len(desk.reply) + BLOCK
            desk.counted_once()

    asyncio.run(main())


@CUTS
def test_a_model_that_is_cut_on_its_way_is_resent_from_where_it_was(transport, tmp_path, place):
    async def main():
        async with open_desk(tmp_path) as desk:
            service = Cut(desk.aggregator, at(place, desk.size))
            async with transport(service) as connect:
                assert blake3(await desk.fetch(connect("one"))).hexdigest() == desk.model
            assert service.cuts == 1
            assert desk.size <= service.moved <= desk.size + BLOCK

    asyncio.run(main())


OVERHEAD = 1 << 17
"""Bytes of two handshakes, three probes, TLS and HTTP/2 around 8 MB."""


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


@dataclass
class Proxy:
    """Forwards TCP to a port; resets every connection once, after some bytes in one direction.

    Before that it lets the other side take what has come: what gRPC has read ahead is lost with
    its connection, and how much that is, is a question of time.
    """

    port: int
    after: dict = field(default_factory=dict)  # {"up" or "down": bytes}
    taken: object = None  # () -> bytes that the other side has taken
    moved: dict = field(default_factory=lambda: {"up": 0, "down": 0})
    cuts: int = 0
    open: list = field(default_factory=list)

    def cut(self):
        self.cuts += 1
        self.after.clear()
        for writer in self.open:
            writer.transport.abort()
        self.open.clear()

    async def pump(self, reader, writer, way):
        try:
            while data := await reader.read(1 << 16):
                if self.moved[way] + len(data) > self.after.get(way, float("inf")):
                    await until(lambda: self.taken() >= self.moved[way] - BLOCK - OVERHEAD)
                    return self.cut()
                self.moved[way] += len(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def met(self, reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        self.open += [writer, back]
        pumps = self.pump(reader, back, "up"), self.pump(there, writer, "down")
        await asyncio.gather(*pumps)


@asynccontextmanager
async def behind_proxy(service, cert):
    """The link of "one" to a service behind a proxy that cuts."""
    async with serve(service, load_identity(cert, "aggregator"), "127.0.0.1:0") as server:
        proxy = Proxy(server.port)
        listening = await asyncio.start_server(proxy.met, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        link = GrpcLink(f"localhost:{port}", load_identity(cert, "one"))
        yield link, proxy
        await link.close()
        proxy.cut()
        listening.close()
        await listening.wait_closed()


@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
def test_an_upload_whose_connection_is_reset_goes_on(cert, tmp_path, place):
    async def main():
        async with (
            open_desk(tmp_path) as desk,
            behind_proxy(desk.aggregator, cert) as (link, proxy),
        ):
            proxy.after["up"] = place * len(desk.reply)
            proxy.taken = lambda: desk.aggregator.spool.grown("upload", "one")
            assert (await desk.deliver(link)).ruling is Ruling.ACCEPTED
            assert proxy.cuts == 1
            assert proxy.moved["up"] <= len(desk.reply) + BLOCK + OVERHEAD
            desk.counted_once()

    asyncio.run(main())


@pytest.mark.parametrize("place", [0.01, 0.5, 0.99])
def test_a_download_whose_connection_is_reset_goes_on(cert, tmp_path, place):
    async def main():
        async with (
            open_desk(tmp_path) as desk,
            behind_proxy(desk.aggregator, cert) as (link, proxy),
        ):
            proxy.after["down"] = place * desk.size
            proxy.taken = lambda: desk.fetched
            assert blake3(await desk.fetch(link)).hexdigest() == desk.model
            assert proxy.cuts == 1
            assert proxy.moved["down"] <= desk.size + BLOCK + OVERHEAD

    asyncio.run(main())


class Lost:
    """Its connections are reset when some calls have done their work, before they say so."""

    def __init__(self, service, *calls):
        self.service, self.calls, self.proxy = service, set(calls), None

    def __getattr__(self, name):
        async def call(*arguments):
            answer = await getattr(self.service, name)(*arguments)
            if name in self.calls:
                self.calls.remove(name)
                self.proxy.cut()
            return answer

        return getattr(self.service, name) if name == "pull" else call


def test_answers_that_are_lost_change_nothing(cert, tmp_path):
    """The connection goes after the last byte is durable, and again after the reply counts."""

    async def main():
        async with open_desk(tmp_path) as desk:
            lossy = Lost(desk.aggregator, "push_blocks", "report")
            async with behind_proxy(lossy, cert) as (link, proxy):
                lossy.proxy = proxy
                assert (await desk.deliver(link)).ruling is Ruling.DUPLICATE
                assert proxy.cuts == 2 and not lossy.calls
                assert desk.read == len(desk.reply)
                assert proxy.moved["up"] <= len(desk.reply) + OVERHEAD
            desk.counted_once()

    asyncio.run(main())
