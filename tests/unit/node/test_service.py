"""The aggregator's service, spoken to directly: who is refused, and what is never lost."""

import asyncio
import hashlib
import threading
from dataclasses import replace

import numpy as np
import pytest

from openfed.ask.machine import Ask
from openfed.errors import OpenFedError
from openfed.node.aggregator import Aggregator
from openfed.store.journal import Journal
from openfed.store.spool import Spool
from openfed.tensors.frame import pack
from openfed.tensors.record import Record
from openfed.wire.messages import (
    Assignment,
    Failure,
    Hello,
    Next,
    Payload,
    Peer,
    Pull,
    Push,
    Report,
    Ruling,
    Stamp,
)

ONE = Peer("lab", "collaborator", "one", 1, float("inf"))
UPDATE = {
    "bn.count": np.array(1),
    "bn.mean": np.zeros(2, np.float32),
    "w": np.ones(3, np.float32),
}


class Desk:
    """An aggregator with one open ask, and the words of a collaborator."""

    def __init__(self, here, tmp_path):
        self.lock = here.lock
        self.journal = Journal(tmp_path / "desk" / "journal.sqlite")
        self.spool = Spool(tmp_path / "desk")
        self.events = []
        emit = lambda kind, fields: self.events.append((kind, fields))  # noqa: E731
        self.aggregator = Aggregator(here.lock, "r1", self.journal, self.spool, emit)
        self.model = self.spool.put([b"model"])[0]
        self.stamp = Stamp("lab", "r1", here.lock.digest, "op")
        self.ask = Ask("ask1", ("one", "two"), 2)
        payload = Payload("model", self.model, 5)
        self.assignment = Assignment("ask1", "train", 1, {}, (payload,), True, 1 << 20)

    async def open(self):
        if self.journal.ask("ask1") is None:
            self.journal.open_ask("ask1", 1, 0, "train")
        await self.aggregator._offer(self.ask, self.assignment)

    async def upload(self, data, peer=ONE, size=None, digest=None):
        found = digest or hashlib.sha256(data).hexdigest()
        push = Push(self.stamp, "ask1", found, len(data) if size is None else size)
        offset = await self.aggregator.push_offset(peer, push)

        async def blocks():
            if data[offset:]:
                yield data[offset:]

        await self.aggregator.push_blocks(peer, push, offset, blocks())
        return found

    async def answer(self, tensors=UPDATE, numbers=None, peer=ONE):
        data = pack(Record(tensors, numbers or {"n": (5.0,)}))
        found = await self.upload(data, peer)
        return await self.aggregator.report(peer, Report(self.stamp, "ask1", found, len(data)))


@pytest.fixture
def desk(lab, tmp_path):
    """Runs `await body(desk)` in a loop of its own."""

    def run(body):
        async def main():
            here = Desk(lab({"one": None, "two": None}), tmp_path)
            try:
                return await asyncio.wait_for(body(here), 30)
            finally:
                here.journal.close()

        return asyncio.run(main())

    return run


STRANGERS = {
    "another federation's certificate": ("R03", {"federation": "other"}, {}),
    "another federation's message": ("R03", {}, {"federation": "other"}),
    "a name that is not in the plan": ("R02", {"name": "eve"}, {}),
    "an aggregator's certificate": ("R02", {"role": "aggregator"}, {}),
    "another plan": ("R01", {}, {"plan_digest": "0" * 64}),
    "another run": ("R04", {}, {"run": "r0"}),
    "another protocol": ("R10", {}, {"protocol": (2, 0)}),
}


@pytest.mark.parametrize("stranger", STRANGERS)
def test_whoever_does_not_belong_is_refused_in_every_call(desk, stranger):
    code, peer, stamp = STRANGERS[stranger]

    async def body(here):
        await here.open()
        who, said = replace(ONE, **peer), replace(here.stamp, **stamp)
        service = here.aggregator
        calls = [
            lambda: service.next(who, Next(said, 0.0)),
            lambda: anext(service.pull(who, Pull(said, here.model))),
            lambda: service.push_offset(who, Push(said, "ask1", "0" * 64, 5)),
            lambda: service.push_blocks(who, Push(said, "ask1", "0" * 64, 5), 0, None),
            lambda: service.report(who, Report(said, "ask1", "0" * 64, 5)),
        ]
        if code != "R04":  # a hello does not know the run yet
            calls.append(lambda: service.hello(who, Hello(said)))
        for call in calls:
            with pytest.raises(OpenFedError) as caught:
                await call()
            assert caught.value.code == code

    desk(body)


def test_who_is_refused_is_said_once_by_name(desk):
    async def body(here):
        for _ in range(3):
            with pytest.raises(OpenFedError):
                await here.aggregator.hello(replace(ONE, name="eve"), Hello(here.stamp))
        ((kind, told),) = here.events
        assert kind == "node.refused" and (told["collaborator"], told["code"]) == ("eve", "R02")

    desk(body)


def test_a_call_that_is_cancelled_while_its_reply_is_journaled_is_adopted_all_the_same(desk):
    async def body(here):
        await here.open()
        data = pack(Record(UPDATE, {"n": (5.0,)}))
        found = await here.upload(data)
        begun, go_on = asyncio.Event(), threading.Event()
        write, loop = here.aggregator._write, asyncio.get_running_loop()

        def slow(*about):
            loop.call_soon_threadsafe(begun.set)
            go_on.wait(20)
            write(*about)

        here.aggregator._write = slow
        report = Report(here.stamp, "ask1", found, len(data))
        call = asyncio.create_task(here.aggregator.report(ONE, report))
        await begun.wait()
        call.cancel()  # the client is gone
        await asyncio.gather(call, return_exceptions=True)
        go_on.set()
        here.aggregator._write = write
        assert (await here.aggregator.report(ONE, report)).ruling is Ruling.DUPLICATE
        assert here.aggregator._asks["ask1"].ask.accepted == {"one": found}

    desk(body)


def test_a_site_keeps_one_upload_for_an_ask(desk):
    async def body(here):
        await here.open()
        for number in range(5):
            await here.upload(b"guess %d" % number)
        with pytest.raises(OpenFedError, match="W04"):
            await here.upload(b"half", size=9)
        assert len(list(here.spool.blobs.glob("one.*"))) == 0
        assert len(list(here.spool.growing.glob("one.*"))) == 1
        assert (await here.answer()).ruling is Ruling.ACCEPTED
        await here.upload(b"after the answer")
        assert len(list(here.spool.blobs.glob("one.*"))) == 1
        assert (await here.answer()).ruling is Ruling.DUPLICATE

    desk(body)


def test_a_fault_of_the_disk_stops_the_run_to_be_resumed(desk):
    async def body(here):
        await here.open()

        def broken(*about):
            raise OSError(28, "No space left on device")

        here.aggregator._write = broken
        with pytest.raises(OSError):
            await here.answer()
        with pytest.raises(OSError):
            await here.aggregator._answered("ask1", 0)

    desk(body)


def test_a_newer_minor_is_tolerated(desk):
    async def body(here):
        newer = replace(here.stamp, protocol=(1, 9), capabilities=("frame/1", "magic/7"))
        await here.aggregator.hello(ONE, Hello(newer))

    desk(body)


def test_only_blobs_of_an_open_assignment_can_be_fetched(desk):
    async def body(here):
        other = here.spool.put([b"secret"])[0]
        await here.open()
        pull = Pull(here.stamp, here.model, 2)
        assert b"".join([b async for b in here.aggregator.pull(ONE, pull)]) == b"del"
        for digest in (other, "../../journal.sqlite"):
            with pytest.raises(OpenFedError, match="R05"):
                await anext(here.aggregator.pull(ONE, replace(pull, digest=digest)))
        await here.answer()
        with pytest.raises(OpenFedError, match="R05"):
            await anext(here.aggregator.pull(ONE, pull))

    desk(body)


def test_an_assignment_is_given_once_and_again_to_whoever_lost_it(desk):
    async def body(here):
        asking = Next(here.stamp, 0.0)
        assert (await here.aggregator.next(ONE, asking)).assignment is None
        await here.open()
        assert (await here.aggregator.next(ONE, asking)).assignment == here.assignment
        assert (await here.aggregator.next(ONE, asking)).assignment == here.assignment
        held = replace(asking, holding=("ask1",))
        assert (await here.aggregator.next(ONE, held)).assignment is None
        await here.answer()
        assert (await here.aggregator.next(ONE, asking)).assignment is None

    desk(body)


def test_a_standing_call_returns_when_there_is_work(desk):
    async def body(here):
        standing = asyncio.create_task(here.aggregator.next(ONE, Next(here.stamp, 25.0)))
        await asyncio.sleep(0)
        await here.open()
        assert (await standing).assignment == here.assignment

    desk(body)


def test_a_reply_counts_once_whatever_is_sent_again(desk):
    async def body(here):
        await here.open()
        assert (await here.answer()).ruling is Ruling.ACCEPTED
        assert (await here.answer()).ruling is Ruling.DUPLICATE
        changed = await here.answer({**UPDATE, "w": np.zeros(3, np.float32)})
        assert (changed.ruling, changed.code) == (Ruling.REFUSED, "R08")
        assert len(here.journal.ask("ask1").replies) == 1

    desk(body)


def test_a_failure_that_is_reported_again_is_a_duplicate(desk):
    async def body(here):
        here.ask = Ask("ask1", ("one", "two"), 1, deadline_s=1000.0)
        await here.open()
        report = Report(here.stamp, "ask1", failure=Failure("K23", "NaN"))
        assert (await here.aggregator.report(ONE, report)).ruling is Ruling.ACCEPTED
        assert (await here.aggregator.report(ONE, report)).ruling is Ruling.DUPLICATE
        assert (await here.answer()).code == "R09"

    desk(body)


BAD = {
    "NaN": ("K23", {**UPDATE, "w": np.float32([1, np.nan, 1])}, None),
    "infinity": ("K23", {**UPDATE, "bn.mean": np.float32([np.inf, 0])}, None),
    "shape": ("K22", {**UPDATE, "w": np.ones((3, 1), np.float32)}, None),
    "dtype": ("K22", {**UPDATE, "w": np.ones(3)}, None),
    "missing": ("K21", {"w": UPDATE["w"]}, None),
    "unknown": ("K21", {**UPDATE, "x": UPDATE["w"]}, None),
    "n of 0": ("K24", UPDATE, {"n": (0.0,)}),
    "n of -1": ("K24", UPDATE, {"n": (-1.0,)}),
    "n of 1e308": ("K24", UPDATE, {"n": (1e308,)}),
    "no n": ("K24", UPDATE, {"seconds": (1.0,)}),
    "no seconds": ("K25", UPDATE, {"n": (1.0,), "seconds": ()}),
    "too many seconds": ("K25", UPDATE, {"n": (1.0,), "seconds": (1.7e308,)}),
    "another task's metric": ("K25", UPDATE, {"n": (1.0,), "metrics/validate/loss": (1e6, 1.0)}),
    "sums that are none": ("K25", UPDATE, {"n": (1.0,), "metrics/train/loss": (1.0,) * 3}),
    "an undeclared number": ("K25", UPDATE, {"n": (1.0,), "patients": (17.0,)}),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_update_is_refused_by_the_aggregator_too(desk, fault):
    code, tensors, numbers = BAD[fault]

    async def body(here):
        await here.open()
        verdict = await here.answer(tensors, numbers)
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, code)
        (reply,) = here.journal.ask("ask1").replies
        assert (reply.collaborator, reply.code, reply.digest) == ("one", code, "")
        ((_, told),) = [event for event in here.events if event[0] == "task.failed"]
        assert (told["collaborator"], told["code"]) == ("one", code)

    desk(body)


def test_bytes_that_are_no_frame_are_refused(desk):
    async def body(here):
        await here.open()
        found = await here.upload(b"not a frame at all")
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", found, 18))
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, "W01")

    desk(body)


def test_bytes_that_were_never_sent_are_refused(desk):
    async def body(here):
        await here.open()
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", "0" * 64, 18))
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, "W05")

    desk(body)


def test_uploads_are_bounded_before_a_byte_is_taken(desk):
    async def body(here):
        await here.open()
        for size, digest, code in ((1 << 40, None, "W03"), (5, "../../etc/passwd", "W05")):
            with pytest.raises(OpenFedError, match=code):
                await here.upload(b"hello", size=size, digest=digest)
        with pytest.raises(OpenFedError, match="R06"):
            push = Push(here.stamp, "ask9", "0" * 64, 5)
            await here.aggregator.push_offset(ONE, push)
        with pytest.raises(OpenFedError, match="R06"):
            await here.aggregator.report(ONE, Report(here.stamp, "ask9", "0" * 64, 5))

    desk(body)


def test_a_reply_of_a_site_that_was_not_asked_is_refused(desk):
    async def body(here):
        here.ask = Ask("ask1", ("two",), 1)
        await here.open()
        failure = Report(here.stamp, "ask1", failure=Failure("K23", "NaN"))
        verdict = await here.aggregator.report(ONE, failure)
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, "R07")
        with pytest.raises(OpenFedError, match="R06"):
            await here.upload(b"hello")

    desk(body)


def test_after_the_end_of_an_ask_a_reply_is_late_and_its_bytes_are_not_wanted(desk):
    async def body(here):
        here.ask = Ask("ask1", ("one", "two"), 1, deadline_s=0.0)
        await here.open()
        assert here.journal.ask("ask1").met is False
        assert (await here.answer()).ruling is Ruling.LATE
        assert not list(here.spool.blobs.glob("one.*"))

    desk(body)


def test_a_report_that_comes_before_the_restarted_flow_waits_for_it(desk):
    async def body(here):
        here.journal.open_ask("ask1", 1, 0, "train")  # by the aggregator's earlier life
        early = asyncio.create_task(here.answer())
        for _ in range(200):  # everything that can happen before the flow is back has happened
            await asyncio.sleep(0)
        assert not early.done()
        held = Next(here.stamp, 0.0, holding=("ask1",))
        assert (await here.aggregator.next(ONE, held)).cancel == ()
        await here.open()
        assert (await early).ruling is Ruling.ACCEPTED

    desk(body)


def test_work_on_a_closed_ask_is_cancelled_once_another_is_open(desk):
    async def body(here):
        await here.open()
        held = Next(here.stamp, 0.0, holding=("ask0", "ask1"))
        assert (await here.aggregator.next(ONE, held)).cancel == ("ask0",)

    desk(body)


def test_the_time_of_earlier_lives_counts_towards_the_deadline(desk):
    async def body(here):
        here.ask = Ask("ask1", ("one", "two"), 1, deadline_s=1000.0, elapsed_s=999.9)
        await here.open()
        await here.answer()
        row = await here.aggregator._answered("ask1", 1)
        assert row.met is True and row.elapsed_s >= 1000.0

    desk(body)
