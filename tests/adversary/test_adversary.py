"""A site with a good certificate that does what no honest one does: refused by code, row by row.

One real aggregator, two honest agents, and eve, over mTLS. In every round eve tries one row of the
table; then she says that she has no reply. The run must end as if she had not been there.
"""

import asyncio
import json
import math
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from blake3 import blake3

from openfed.codec.packet import MAGIC, Head, head_bytes, packet_blocks
from openfed.errors import CODES, OpenFedError
from openfed.pki.files import load_identity
from openfed.pki.keys import create_identity_key, create_key
from openfed.pki.request import create_request
from openfed.tensors.frame import Held
from openfed.tensors.record import Record
from openfed.transport.environment import grpc
from openfed.transport.grpc import MOST_CALLS, SERVICE
from openfed.wire import federation_pb2 as pb
from openfed.wire.convert import encode
from openfed.wire.messages import (
    ENOUGH,
    Failure,
    Hello,
    Next,
    Pull,
    Push,
    Renew,
    Report,
    Stamp,
)
from tests.adversary.world import aggregator, honest_run, last_digest, make_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CODECS = "compression_pipeline: {uplink: {codecs: [zstd]}}"
SITES = {"one": (0.5, 4), "two": (0.25, 8)}
UPDATE = {
    "bn.count": np.array(3),
    "bn.mean": np.full(2, 0.5, np.float32),
    "w": np.float32([1, -1, 0.5]),
}
N = {"n": (5.0,)}


class Eve:
    """Who knows the protocol, has a certificate, and an assignment of this round."""

    def __init__(self, server):
        self.server, self.world = server, server.world
        self.link = server.link("eve")
        self.stamp = Stamp("lab", "", self.world.lock.digest, "op")
        self.asked = self.before = None
        self.uploads = 0

    async def join(self):
        welcome = await self.link.hello(Hello(self.stamp, {"isolation": "none"}))
        self.stamp = replace(self.stamp, run=welcome.stamp.run)

    async def next_training(self):
        """Waits for it, or for the run's end; says that she has no answer to anything else."""
        self.before = self.asked
        while not (orders := await self.link.next(Next(self.stamp, 20.0))).state.ended:
            if orders.assignment and orders.assignment.task == "train":
                self.asked = orders.assignment
                return
            if orders.assignment:
                await self.give_up(orders.assignment.ask)

    async def give_up(self, ask):
        report = Report(self.stamp, ask, failure=Failure("K20", "no reply"))
        await self.link.report(report)

    @property
    def model(self):
        return self.asked.payloads[0].digest

    def packet(self, tensors=UPDATE, numbers=N, base="", **head):
        coded = Head(*self._coding(tensors), numbers, base or self.model, **head)
        return b"".join(bytes(each) for each in packet_blocks(coded, Held(Record(tensors))))

    def _coding(self, tensors):
        chain = self.world.chains()[0]
        specs = Held(Record(tensors)).specs
        return specs, (chain,) * len(specs)

    def named(self):
        self.uploads += 1
        return f"upload-{self.uploads}"

    async def push(self, data, *, digest="", said="", size=None, **stamp):
        """Upload these bytes and report them; the verdict's code, or how it ruled."""
        blocks = data if callable(data) else pieces(data)
        stamp = replace(self.stamp, **stamp)

        async def report():
            found = said or blake3(data).hexdigest()
            return Report(stamp, self.asked.ask, found, len(data) if size is None else size)

        push = Push(stamp, self.asked.ask, self.named(), digest)
        return code_of(await self.link.push(push, blocks, report))

    async def report(self, **told):
        return code_of(await self.link.report(Report(self.stamp, self.asked.ask, **told)))

    def channel(self):
        node = load_identity(self.world.root / "cert", "eve")
        credentials = grpc.ssl_channel_credentials(node.authority_pem, node.key_pem, node.chain_pem)
        return grpc.aio.secure_channel(f"localhost:{self.server.port}", credentials)

    async def raw(self, method, data):
        """Bytes as they are, in a unary call; the code that it is refused with."""
        async with self.channel() as channel:
            try:
                await channel.unary_unary(f"/{SERVICE}/{method}")(data, timeout=30)
            except grpc.aio.AioRpcError as error:
                return error.details() if error.details() in CODES else error.code().name
        return "taken"


def pieces(data):
    async def give(offset):
        for at in range(offset, len(data), 1 << 20):
            yield data[at : at + (1 << 20)]

    return give


def code_of(verdict):
    return verdict.code or verdict.ruling.value


# -- what is sent: row by row ----------------------------------------------------------------------


def update(code, tensors=UPDATE, numbers=N, **head):
    async def attack(eve):
        return await eve.push(eve.packet(tensors, numbers, **head))

    return code, attack


def with_(**entries):
    return {**UPDATE, **{name.replace("_", "."): value for name, value in entries.items()}}


def written(code, header=(), numbers=None, body=b""):
    """A packet whose header no writer of ours would write."""

    async def attack(eve):
        whole = head_bytes(Head(*eve._coding(UPDATE), N, eve.model))
        content = json.loads(whole[16:]) | dict(header)
        if numbers is not None:
            content["numbers"] = numbers
        text = json.dumps(content, separators=(",", ":")).encode()
        rest = eve.packet()[len(whole) :]
        return await eve.push(MAGIC + len(text).to_bytes(8, "little") + text + (body or rest))

    return code, attack


def bomb(size, declared):
    """A chunk that becomes `size` zeros when it is opened; 12 bytes are wanted."""

    async def attack(eve):
        frame = zstandard.ZstdCompressor(write_content_size=declared).compress(bytes(size))
        whole = eve.packet()
        tail = bytes([1]) + len(frame).to_bytes(3, "little") + frame
        head = Head(*eve._coding(UPDATE), N, eve.model)
        data = head_bytes(head)
        for _ in UPDATE:
            data += len(tail).to_bytes(4, "little") + tail
        assert len(whole) < len(data)
        return await eve.push(data)

    return attack


async def endless(eve):
    """Blocks without end; it is the aggregator that ends it."""
    sent = 0

    async def blocks(offset):
        nonlocal sent
        while True:
            assert sent < 1 << 30, "nobody stopped it"
            sent += 1 << 20
            yield bytes(1 << 20)

    return await eve.push(blocks)


def stamped(code, **changed):
    async def attack(eve):
        return await eve.push(eve.packet(), **changed)

    return code, attack


async def foreign_blob(eve):
    async for _ in eve.link.pull(Pull(eve.stamp, "f" * 64)):
        pass
    return "taken"


async def stale(eve):
    """The round before: nothing of it is wanted, and it is late."""
    old = eve.before or replace(eve.asked, ask="0" * 32)
    push = Push(eve.stamp, old.ask, eve.named())
    wanted = []

    async def blocks(offset):
        wanted.append(offset)
        return
        yield

    async def report():
        return Report(eve.stamp, old.ask, "e" * 64, 5)

    verdict = await eve.link.push(push, blocks, report)
    assert wanted == [ENOUGH]
    return code_of(verdict)


async def stale_base(eve):
    return await eve.push(eve.packet(base=eve.before.payloads[0].digest))


async def somebody_elses_upload(eve):
    """What "one" has uploaded in an earlier round lies there by its digest."""
    folder = eve.world.root / "runs" / "r1" / "blobs"
    known = [each.name.partition(".")[2] for each in folder.glob("one.*")]
    return await eve.report(digest=known[0] if known else "d" * 64, size=5)


async def somebody_elses_name(eve):
    push = pb.Push(stamp=_stamp(eve), ask=eve.asked.ask, upload="../one.up", digest="")
    async with eve.channel() as channel:
        call = channel.stream_stream(f"/{SERVICE}/Push")()
        await call.write(push.SerializeToString())
        with suppress(grpc.aio.AioRpcError):
            await call.read()
        return await call.details()


async def somebody_elses_certificate(eve):
    request = create_request("one", create_key(), create_identity_key())
    await eve.link.renew(Renew(eve.stamp, request))
    return "taken"


async def many_uploads(eve):
    """Each replaces the one before, and is reported as the answer to what nobody asked."""

    async def reporting():
        return Report(eve.stamp, "0" * 32, "e" * 64, 5)

    for number in range(300):
        with pytest.raises(OpenFedError, match="R06"):
            push = Push(eve.stamp, eve.asked.ask, eve.named())
            await eve.link.push(push, pieces(b"x" * number), reporting)
    left = [each.name for each in (eve.world.root / "runs" / "r1").glob("*/eve.*")]
    assert len(left) <= 2, left
    return await eve.report(digest="a" * 64, size=1)


async def many_ids(eve):
    codes = set()
    for number in range(1000):
        try:
            await eve.link.report(Report(eve.stamp, f"{number:032x}", "e" * 64, 5))
        except OpenFedError as error:
            codes.add(error.code)
    (code,) = codes
    return code


async def many_calls(eve):
    """Uploads that begin and say nothing more. As long as they are open, eve has no other call."""
    async with eve.channel() as channel:
        calls = [channel.stream_stream(f"/{SERVICE}/Push")() for _ in range(MOST_CALLS + 20)]
        answers = await asyncio.gather(*(_begun(eve, call) for call in calls))
        for call in calls:
            call.cancel()
        assert answers.count("open") <= MOST_CALLS
    return (set(answers) - {"open"}).pop()


async def _begun(eve, call):
    try:
        await call.write(encode(Push(eve.stamp, eve.asked.ask, eve.named())))
        return "open" if await call.read() is not grpc.aio.EOF else await call.details()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):  # it has been ended meanwhile
        return await call.details()


async def trickle(eve):
    """Bytes of one block come so slowly that it is never whole; nobody waits for it."""
    async with eve.channel() as channel:
        call = channel.stream_stream(f"/{SERVICE}/Push")()
        await call.write(encode(Push(eve.stamp, eve.asked.ask, eve.named())))
        await call.read()
        await call.write(b"x")  # test_stalled.py: how it ends where nobody ends it
        await eve.give_up(eve.asked.ask)
        call.cancel()
    return "given up"


def _stamp(eve):
    stamp = eve.stamp
    return pb.Stamp(
        federation="lab",
        run=stamp.run,
        plan_digest=stamp.plan_digest,
        operation="o",
        attempt=1,
        major=2,
    )


def raw(code, method, make):
    async def attack(eve):
        return await eve.raw(method, make(eve))

    return code, attack


def failing(**told):
    def make(eve):
        failure = pb.Failure(**{"code": "K20", "message": "", **told})
        report = pb.Report(stamp=_stamp(eve), ask=eve.asked.ask, failure=failure)
        return report.SerializeToString()

    return make


def metric(values):
    return {"n": [5.0], "metrics/train/loss": values}


NAN, INF = np.float32(math.nan), np.float32(math.inf)

ATTACKS = {
    "NaN": update("K23", with_(w=np.float32([1, NAN, 1]))),
    "infinity": update("K23", with_(bn_mean=np.float32([INF, 0]))),
    "another shape": update("K22", with_(w=np.ones((3, 1), np.float32))),
    "more elements": update("K22", with_(w=np.ones(4, np.float32))),
    "another dtype": update("K22", with_(w=np.ones(3))),
    "a missing entry": update("K21", {"w": UPDATE["w"]}),
    "an extra entry": update("K21", with_(x=np.zeros(2, np.float32))),
    "another name": update("K21", with_(W=UPDATE["w"])),
    "a frozen entry": update("K21", with_(fixed=np.zeros(2, np.float32))),
    "a name that a terminal obeys": update("K21", {**UPDATE, "\x1b[2J": UPDATE["w"]}),
    "a hundred thousand entries": update(
        "K21", {f"e{index}": np.zeros(0, np.float32) for index in range(20_000)}
    ),
    "n of 0": update("K24", numbers={"n": (0.0,)}),
    "n of -1": update("K24", numbers={"n": (-1.0,)}),
    "n of 1e308": update("K24", numbers={"n": (1e308,)}),
    "n of a half": update("K24", numbers={"n": (0.5,)}),
    "no n": update("K24", numbers={}),
    "two n": update("K24", numbers={"n": (5.0, 5.0)}),
    "n of NaN": written("W02", numbers={"n": [math.nan]}),
    "a loss of infinity": written("W02", numbers=metric([math.inf, 1.0])),
    "a number of 400 digits": written("W02", numbers={"n": [10**400]}),
    "an undeclared metric": update("K25", numbers={**N, "patients": (17.0,)}),
    "a metric's name of 1 MB": update("K25", numbers={**N, "m" * 1_000_000: (1.0,)}),
    "a metric that a terminal obeys": update("K25", numbers={**N, "\x1b]0;x\x07": (1.0,)}),
    "a metric that is text": written("W02", numbers=metric("x" * 1_000_000)),
    "a million numbers": written("W02", numbers=metric([1] * 1_000_000)),
    "a million numbers in lists": written(
        "K25", numbers={**N, **{f"m{i}": [1] * 50_000 for i in range(20)}}
    ),
    "a hundred thousand metrics": written(
        "K25", numbers={**N, **{f"m{index}": [] for index in range(100_000)}}
    ),
    "brackets without end": written("W02", header={"base": json.loads("[" * 500 + "]" * 500)}),
    "a codec that is not the plan's": written("W22", header={"chains": [[["topk", 1, {}]]]}),
    "no such chain": written("W02", header={"tensors": [["w", "float32", [3], 7]]}),
    "a tensor of 2**60 elements": written(
        "W03", header={"tensors": [["w", "float32", [1 << 30, 1 << 30], 0]]}
    ),
    "bytes behind the end": written("W01", body=bytes(100)),
    "no packet": ("W01", lambda eve: eve.push(b"x" * 5000)),
    "nothing": ("W01", lambda eve: eve.push(b"")),
    "a bomb that says so": ("W01", bomb(1 << 28, True)),
    "a bomb that does not": ("W01", bomb(1 << 28, False)),
    "a small bomb": ("W20", bomb(100, False)),
    "an upload without end": ("W04", endless),
    "another digest": ("W05", lambda eve: eve.push(eve.packet(), digest="a" * 64)),
    "a report of other bytes": ("W05", lambda eve: eve.push(eve.packet(), said="a" * 64)),
    "a report of nothing": ("W05", lambda eve: eve.report(digest="a" * 64, size=5)),
    "the round before": ("late", stale),
    "an update of the model before": ("W14", stale_base),
    "another federation": stamped("R03", federation="other"),
    "another plan": stamped("R01", plan_digest="0" * 64),
    "another run": stamped("R04", run="r0"),
    "an older protocol": stamped("W11", protocol=(1, 0)),
    "a blob that she need not have": ("R05", foreign_blob),
    "somebody else's upload": ("W05", somebody_elses_upload),
    "somebody else's file name": ("W10", somebody_elses_name),
    "somebody else's certificate": ("C30", somebody_elses_certificate),
    "a thousand uploads": ("W05", many_uploads),
    "a thousand asks": ("R06", many_ids),
    "fifty calls at once": ("W16", many_calls),
    "a byte and no more": ("given up", trickle),
    "a message of 8 MB": raw("RESOURCE_EXHAUSTED", "Next", lambda eve: bytes(8 << 20)),
    "a message of 3 MB": raw("W10", "Next", lambda eve: bytes(3 << 20)),
    "a message that is none": raw("W10", "Next", lambda eve: b"\xff" * 100),
    "a message of nothing": raw("W11", "Next", lambda eve: b""),
    "ten thousand ids": raw("W10", "Next", lambda eve: pb.Next(
        stamp=_stamp(eve), holding=[f"a{i}" for i in range(10_000)]).SerializeToString()),
    "a wait of NaN": raw("W10", "Next", lambda eve: pb.Next(
        stamp=_stamp(eve), wait_s=math.nan).SerializeToString()),
    "facts that a terminal obeys": raw("W10", "Hello", lambda eve: pb.Hello(
        stamp=_stamp(eve), facts={"isolation": "\x1b[2J"}).SerializeToString()),
    "a failure that a terminal obeys": raw("W10", "Report", failing(message="\x1b[2J")),
    "a failure of 100 kB": raw("W10", "Report", failing(message="x" * 100_000)),
    "a traceback of 900 kB": raw("W10", "Report", failing(traceback="x" * 900_000)),
    "a code that is none": raw("taken", "Report", failing(code="Z99", message="?")),
    "a digest that is a path": raw("W10", "Pull", lambda eve: pb.Pull(
        stamp=_stamp(eve), digest="../../journal.sqlite").SerializeToString()),
    "an offset beyond all": raw("W10", "Pull", lambda eve: pb.Pull(
        stamp=_stamp(eve), digest="a" * 64, offset=1 << 60).SerializeToString()),
}  # fmt: skip
GROWTH = 96 << 20
"""Bytes by which the aggregator may grow for a moment, all attacks being at most 5 MB each."""


async def attacked(server):
    """Every row in a round of its own: what eve was told, and how much memory it took."""
    eve = Eve(server)
    await eve.join()
    told, grown = {}, {}
    for name, (_, attack) in ATTACKS.items():
        await eve.next_training()
        before = server.rss()
        try:
            told[name] = await attack(eve)
        except OpenFedError as error:
            told[name] = error.code
        grown[name] = server.peak() - before
        await eve.give_up(eve.asked.ask)
    await eve.next_training()
    await eve.link.close()
    return told, grown


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """(what eve was told by row, memory by row, the aggregator, how it ended, its workspace)"""
    root = tmp_path_factory.mktemp("adversary")
    world = make_world(
        root / "w",
        {**SITES, "eve": (0.0, 1)},
        rounds=len(ATTACKS),
        more=f"cohort: {{quorum: 2, deadline: 10m}}\n{CODECS}",
    )

    async def main():
        honest = asyncio.create_task(honest_run(server, *SITES))
        attacking = asyncio.create_task(attacked(server))
        await asyncio.wait({honest, attacking}, return_when=asyncio.FIRST_COMPLETED)
        if honest.done():
            attacking.cancel()
        found = await attacking
        return found, await honest

    with aggregator(world) as server:
        (told, grown), ended = asyncio.run(main())
        code = server.finish()
        yield told, grown, server, (ended, code), world


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_refused_with_its_code(played, attack):
    assert played[0][attack] == ATTACKS[attack][0]


def test_no_attack_takes_much_memory(played):
    assert {name: size >> 20 for name, size in played[1].items() if size > GROWTH} == {}


def test_the_others_go_on_as_if_nobody_had_attacked(played, tmp_path):
    _, _, _, (ended, code), world = played
    assert [state.value for state, _ in ended] == ["completed", "completed"]
    assert code == 0
    alone = make_world(tmp_path / "u", SITES, rounds=len(ATTACKS), more=CODECS)
    alone.run()
    assert last_digest(world) == last_digest(alone)


def test_what_people_are_told_is_short_and_no_terminal_obeys_it(played):
    events = played[2].events
    failed = [event for event in events if event["event"] == "task.failed"]
    assert {event["collaborator"] for event in failed} == {"eve"}
    for event in events:
        for text in (str(event.get("message", "")), str(event.get("traceback", ""))):
            assert len(text) <= 20_000
            assert text.replace("\n", "").replace("\t", "").isprintable(), event
    assert all(len(event["message"]) <= 2000 for event in failed)


def test_the_log_has_no_traceback(played):
    assert "Traceback" not in played[2].log.read_text()


def test_nothing_of_hers_is_left(played):
    folder = played[4].root / "runs" / "r1"
    assert not list(folder.glob("*/eve.*"))
