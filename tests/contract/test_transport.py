"""What every transport does: one body per behaviour, run in process and over mutual TLS."""

import asyncio
from dataclasses import dataclass, field, replace

import pytest
from blake3 import blake3

from openfed.errors import (
    CertificateError,
    OpenFedError,
    PolicyError,
    TaskError,
    TransportError,
    UsageError,
    WireError,
)
from openfed.pki.request import Request
from openfed.wire.messages import (
    ENOUGH,
    Assignment,
    Blob,
    Failure,
    Hello,
    Next,
    Orders,
    Payload,
    Pull,
    Push,
    Renew,
    Renewed,
    Report,
    Ruling,
    RunState,
    Stamp,
    Verdict,
    Welcome,
)

STAMP = Stamp("fed", "run-1", "d" * 64, "op-1", attempt=2)
BODY = bytes(range(256)) * (25 << 10) + b"end"  # 6.25 MiB and a bit
DIGEST = blake3(BODY).hexdigest()
ORDERS = Orders(
    STAMP,
    RunState.RUNNING,
    "",
    30.0,
    Assignment(
        "ask-1",
        "train",
        3,
        {"epochs": 2},
        (Payload("model", DIGEST, 9, (Blob(DIGEST, 9),)),),
        True,
        99,
    ),
    ("ask-0",),
)


REPORT = Report(STAMP, "ask-1", DIGEST, 9)
TOO_LATE = Verdict(STAMP, Ruling.LATE, "T12", "too late")


ASKED = Renew(STAMP, Request(b"csr", b"i" * 32, b"s" * 64))


async def reported():
    return REPORT


@dataclass
class Shelf:
    """A small honest service: answers what it is told to, keeps what it is sent."""

    fault: Exception | None = None
    seen: list = field(default_factory=list)
    stored: bytearray = field(default_factory=bytearray)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: int = 0
    ended: list = field(default_factory=list)

    def note(self, peer, message):
        self.seen.append((peer.name, message))
        if self.fault:
            raise self.fault

    async def hello(self, peer, hello):
        self.note(peer, hello)
        return Welcome(STAMP, RunState.WAITING, 12.5)

    async def next(self, peer, next):
        self.note(peer, next)
        self.waiting += 1
        try:
            async with asyncio.timeout(next.wait_s):
                await self.news.wait()
        except TimeoutError:
            return replace(ORDERS, assignment=None, cancel=())
        except asyncio.CancelledError:
            self.ended.append("next")
            raise
        finally:
            self.waiting -= 1
        return ORDERS

    async def pull(self, peer, pull):
        try:
            self.note(peer, pull)
            for begin in range(pull.offset, len(BODY), 3 << 20):
                yield memoryview(BODY)[begin : begin + (3 << 20)]
        finally:
            self.ended.append("pull")

    async def push_offset(self, peer, push):
        self.note(peer, push)
        return len(self.stored)

    async def push_blocks(self, peer, push, offset, blocks):
        assert offset == len(self.stored)
        try:
            async for block in blocks:
                self.stored += block
        finally:
            self.ended.append("push")

    async def report(self, peer, report):
        self.note(peer, report)
        return TOO_LATE

    async def renew(self, peer, renew):
        self.note(peer, renew)
        return Renewed(STAMP, b"chain", b"anchors")


@pytest.fixture
def run(transport):
    """Runs `body(service, link of "one")` over the transport."""

    def run(body, service=None):
        async def main():
            shelf = service or Shelf()
            async with transport(shelf) as connect:
                await asyncio.wait_for(body(shelf, connect("one")), 30)

        asyncio.run(main())

    return run


async def until(condition):
    """Lets the other side go on until it has done what is waited for."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def blocks_of(body, offset, size=700_001):
    for begin in range(offset, len(body), size):
        yield body[begin : begin + size]


async def pulled(link, offset=0):
    return b"".join([bytes(block) async for block in link.pull(Pull(STAMP, DIGEST, offset))])


def test_hello_is_answered(run):
    async def body(shelf, link):
        hello = Hello(STAMP, {"python": "3.11"})
        assert await link.hello(hello) == Welcome(STAMP, RunState.WAITING, 12.5)
        assert shelf.seen == [("one", hello)]

    run(body)


@pytest.mark.parametrize(
    "report",
    [
        Report(STAMP, "ask-1", DIGEST, 9),
        Report(STAMP, "ask-1", failure=Failure("K01", "it broke", "the lines")),
    ],
    ids=["digest", "failure"],
)
def test_a_report_is_answered(run, report):
    async def body(shelf, link):
        assert await link.report(report) == TOO_LATE
        assert shelf.seen == [("one", report)]

    run(body)


def test_a_poll_returns_when_there_is_news(run):
    async def body(shelf, link):
        poll = asyncio.create_task(link.next(Next(STAMP, 60.0, ("ask-0",))))
        await until(lambda: shelf.waiting == 1)
        assert not poll.done()
        shelf.news.set()
        assert await asyncio.wait_for(poll, 5) == ORDERS
        assert shelf.seen == [("one", Next(STAMP, 60.0, ("ask-0",)))]

    run(body)


def test_a_poll_returns_after_its_wait(run):
    async def body(shelf, link):
        assert (await link.next(Next(STAMP, 0.01))).assignment is None

    run(body)


def test_many_polls_are_held_at_once(run):
    async def body(shelf, link):
        polls = [asyncio.create_task(link.next(Next(STAMP, 60.0))) for _ in range(30)]
        await until(lambda: shelf.waiting == 30)
        assert (await link.hello(Hello(STAMP))).lease_s == 12.5  # the line is not blocked
        shelf.news.set()
        assert await asyncio.gather(*polls) == [ORDERS] * 30

    run(body)


def test_a_cancelled_poll_ends_at_the_service(run):
    async def body(shelf, link):
        poll = asyncio.create_task(link.next(Next(STAMP, 60.0)))
        await until(lambda: shelf.waiting == 1)
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll
        await until(lambda: shelf.ended == ["next"])

    run(body)


@pytest.mark.parametrize("offset", [0, 1, 1 << 20, len(BODY) - 1, len(BODY)])
def test_a_blob_is_pulled_from_an_offset(run, offset):
    async def body(shelf, link):
        assert await pulled(link, offset) == BODY[offset:]
        assert shelf.seen == [("one", Pull(STAMP, DIGEST, offset))]
        assert shelf.ended == ["pull"]

    run(body)


def test_a_pull_that_is_given_up_ends_at_the_service(run):
    async def body(shelf, link):
        blocks = link.pull(Pull(STAMP, DIGEST))
        await anext(blocks)
        await blocks.aclose()
        await until(lambda: shelf.ended == ["pull"])

    run(body)


@pytest.mark.parametrize("size", [0, 1, 700_001, len(BODY)])
def test_a_blob_is_pushed(run, size):
    push = Push(STAMP, "ask-1", "upload", DIGEST)

    async def body(shelf, link):
        verdict = await link.push(push, lambda offset: blocks_of(BODY[:size], offset), reported)
        assert bytes(shelf.stored) == BODY[:size]
        assert shelf.seen == [("one", push), ("one", REPORT)]
        assert verdict == TOO_LATE

    run(body)


def test_a_push_goes_on_where_the_service_says(run):
    offsets = []

    async def body(shelf, link):
        def blocks(offset):
            offsets.append(offset)
            return blocks_of(BODY, offset)

        await link.push(Push(STAMP, "ask-1", "upload"), blocks, reported)
        assert (bytes(shelf.stored), offsets) == (BODY, [1_234_567])

    run(body, Shelf(stored=bytearray(BODY[:1_234_567])))


def test_a_push_that_fails_at_its_source_ends_at_the_service(run):
    async def blocks(offset):
        yield BODY[: 1 << 20]
        raise OSError("the disk is gone")

    async def body(shelf, link):
        with pytest.raises(OSError, match="the disk is gone"):
            await link.push(Push(STAMP, "ask-1", "upload"), blocks, reported)
        await until(lambda: shelf.ended == ["push"])

    run(body)


def test_a_push_of_which_nothing_is_wanted_sends_nothing(run):
    class Full(Shelf):
        async def push_offset(self, peer, push):
            self.note(peer, push)
            return ENOUGH

        async def push_blocks(self, peer, push, offset, blocks):
            assert offset == ENOUGH and [block async for block in blocks] == []
            self.ended.append("push")

    async def blocks(offset):
        assert offset == ENOUGH
        return
        yield

    async def body(shelf, link):
        await link.push(Push(STAMP, "ask-1", "upload"), blocks, reported)
        assert shelf.ended == ["push"]

    run(body, Full())


def test_a_report_may_come_long_after_the_last_block(run):
    async def body(shelf, link):
        async def late():
            await until(lambda: bytes(shelf.stored) == BODY)
            return REPORT

        push = Push(STAMP, "ask-1", "upload")
        assert await link.push(push, lambda offset: blocks_of(BODY, offset), late) == TOO_LATE

    run(body)


def test_a_report_that_cannot_be_made_ends_the_push(run):
    async def body(shelf, link):
        async def broken():
            raise OSError("the disk is gone")

        with pytest.raises(OSError, match="the disk is gone"):
            await link.push(
                Push(STAMP, "ask-1", "upload"), lambda offset: blocks_of(BODY, offset), broken
            )
        assert not [each for _, each in shelf.seen if isinstance(each, Report)]

    run(body)


def test_a_push_whose_rest_is_not_wanted_is_reported_all_the_same(run):
    class Enough(Shelf):
        async def push_blocks(self, peer, push, offset, blocks):
            await anext(blocks)

    async def body(shelf, link):
        push = Push(STAMP, "ask-1", "upload")
        blocks = lambda offset: blocks_of(BODY, offset)  # noqa: E731
        assert await link.push(push, blocks, reported) == TOO_LATE
        assert shelf.seen[-1] == ("one", REPORT)

    run(body, Enough())


def test_an_empty_block_in_the_middle_does_not_end_a_push(run):
    async def body(shelf, link):
        async def blocks(offset):
            for part in (b"", b"one", b"", memoryview(b"two"), b""):
                yield part

        await link.push(Push(STAMP, "ask-1", "upload"), blocks, reported)
        assert bytes(shelf.stored) == b"onetwo"

    run(body)


def one_byte(offset):
    return blocks_of(b"x", offset)


NONSENSE = {
    "digest": lambda link: anext(link.pull(Pull(STAMP, "../../etc/passwd"))),
    "negative": lambda link: anext(link.pull(Pull(STAMP, DIGEST, -1))),
    "large": lambda link: anext(link.pull(Pull(STAMP, DIGEST, 1 << 60))),
    "push": lambda link: link.push(
        Push(STAMP, "a\nb", "upload"), lambda o: blocks_of(b"x", o), reported
    ),
    "upload": lambda link: link.push(
        Push(STAMP, "a", "../b"), lambda o: blocks_of(b"x", o), reported
    ),
    "report": lambda link: link.report(Report(STAMP, "ask-1")),
    "renew": lambda link: link.renew(Renew(STAMP, Request(b"csr", b"x" * 33, b""))),
}


def test_a_renewal_passes(run):
    async def body(shelf, link):
        assert await link.renew(ASKED) == Renewed(STAMP, b"chain", b"anchors")
        assert shelf.seen == [("one", ASKED)]

    run(body)


@pytest.mark.parametrize("call", NONSENSE)
def test_nonsense_never_reaches_the_service(run, call):
    async def body(shelf, link):
        with pytest.raises(WireError, match="^W10 "):
            await NONSENSE[call](link)
        assert shelf.seen == []

    run(body)


def test_another_major_version_is_refused_by_name(run):
    async def body(shelf, link):
        with pytest.raises(WireError, match=r"^W11 .*speaks protocol 1\.0, this side 2\.1"):
            await link.hello(Hello(replace(STAMP, protocol=(1, 0))))

    run(body)


FAULTS = [
    PolicyError("T13", "not here: é\nsecond line"),
    CertificateError("C18", "no longer admitted"),
    WireError("W02", "a name twice"),
    TransportError("T12", "later"),
    TransportError("T10", "never", permanent=True),
    UsageError("T13", "what is that"),
    TaskError("T11", "user code"),
    OpenFedError("T11", "something"),
    TransportError("T12", "\N{GRINNING FACE}" * 500),
]
CALLS = {
    "hello": lambda link: link.hello(Hello(STAMP)),
    "next": lambda link: link.next(Next(STAMP, 1.0)),
    "pull": lambda link: anext(link.pull(Pull(STAMP, DIGEST))),
    "push": lambda link: link.push(
        Push(STAMP, "ask-1", "upload"), lambda offset: blocks_of(BODY, offset), reported
    ),
    "report": lambda link: link.report(Report(STAMP, "ask-1", DIGEST, 9)),
    "renew": lambda link: link.renew(ASKED),
}


@pytest.mark.parametrize("call", CALLS)
def test_errors_cross_with_class_code_and_message(run, call):
    async def body(shelf, link):
        for fault in FAULTS:
            shelf.fault = fault
            with pytest.raises(OpenFedError) as caught:
                await CALLS[call](link)
            found = caught.value
            assert (type(found), found.code, found.message) == (
                type(fault),
                fault.code,
                fault.message,
            )
            assert getattr(found, "permanent", None) == getattr(fault, "permanent", None)

    run(body)


def test_an_error_in_the_middle_of_a_push_crosses(run):
    class Full(Shelf):
        async def push_blocks(self, peer, push, offset, blocks):
            await anext(blocks)
            raise PolicyError("T13", "the disk is full")

    async def body(shelf, link):
        with pytest.raises(PolicyError, match="the disk is full"):
            await CALLS["push"](link)

    run(body, Full())


def test_an_error_in_the_middle_of_a_pull_crosses(run):
    class Torn(Shelf):
        async def pull(self, peer, pull):
            yield BODY[:100]
            raise PolicyError("T13", "the blob is gone")

    async def body(shelf, link):
        blocks = link.pull(Pull(STAMP, DIGEST))
        assert bytes(await anext(blocks)) == BODY[:100]
        with pytest.raises(PolicyError, match="the blob is gone"):
            await anext(blocks)

    run(body, Torn())


def test_the_service_is_told_who_calls(transport):
    async def main():
        shelf = Shelf()
        async with transport(shelf) as connect:
            for name in ("one", "two", "one"):
                await connect(name).hello(Hello(STAMP))
        assert [name for name, _ in shelf.seen] == ["one", "two", "one"]

    asyncio.run(main())
