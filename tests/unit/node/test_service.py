"""The aggregator's service, spoken to directly: who is refused, and what is never lost."""

import asyncio
import contextlib
import fcntl
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from openfed.ask.machine import Ask
from openfed.codec.chain import Chain, make_chain
from openfed.codec.packet import Head, packet_blocks
from openfed.errors import OpenFedError, PolicyError, TransportError
from openfed.node.aggregator import Aggregator
from openfed.store.journal import Journal, Reply
from openfed.store.spool import Spool
from openfed.tensors.frame import Held
from openfed.tensors.record import Record, signature_of
from openfed.tensors.update import update_signature
from openfed.wire.messages import (
    BLOCK,
    ENOUGH,
    Assignment,
    Blob,
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
        self.here, self.lock = here, here.lock
        self.journal = Journal(tmp_path / "desk" / "journal.sqlite")
        self.spool = Spool(tmp_path / "desk")
        self.events = []
        emit = lambda kind, fields: self.events.append((kind, fields))  # noqa: E731
        about = (here.lock, "r1", self.journal, self.spool, emit)
        self.served = lambda consent=None: Aggregator(*about, consent=consent)
        self.aggregator = self.served()
        self.model = self.spool.put([b"model"])[0]
        self.stamp = Stamp("lab", "r1", here.lock.digest, "op")
        self.ask = Ask("ask1", ("one", "two"), 2)
        payload = Payload("model", self.model, 5, (Blob(self.model, 5),))
        self.entries = update_signature(here.lock.signature)
        self.assignment = Assignment("ask1", "train", 1, {}, (payload,), True, 1 << 20)

    async def open(self):
        if self.journal.ask("ask1") is None:
            self.journal.open_ask("ask1", 1, 0, "train")
        await self.aggregator._offer(self.ask, self.assignment, self.entries)

    async def upload(self, data, peer=ONE, name="", digest=""):
        """Push it under a name, by default that of its digest; returns its digest."""
        found = blake3(data).hexdigest()
        push = Push(self.stamp, "ask1", name or found[:16], digest)
        offset = await self.aggregator.push_offset(peer, push)

        async def blocks():
            if data[offset:]:
                yield data[offset:]

        await self.aggregator.push_blocks(peer, push, offset, blocks())
        return found

    async def answer(self, tensors=UPDATE, numbers=None, peer=ONE):
        data = self.here.coded(tensors, numbers or {"n": (5.0,)}, self.model)
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
    "another protocol": ("R10", {}, {"protocol": (1, 0)}),
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
            lambda: service.push_offset(who, Push(said, "ask1", "upload")),
            lambda: service.push_blocks(who, Push(said, "ask1", "upload"), 0, None),
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
        data = here.here.coded(UPDATE, {"n": (5.0,)}, here.model)
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
        with pytest.raises(OpenFedError, match="W05"):
            await here.upload(b"half", digest="0" * 64)
        assert not list(here.spool.blobs.glob("one.*"))
        assert not list(here.spool.growing.glob("one.*"))
        assert (await here.answer()).ruling is Ruling.ACCEPTED
        await here.upload(b"after the answer")
        assert len(list(here.spool.blobs.glob("one.*"))) == 1
        assert (await here.answer()).ruling is Ruling.DUPLICATE

    desk(body)


def pieces(*blocks):
    async def give():
        for block in blocks:
            yield block
        if not blocks or blocks[-1] != b"the end":
            raise ConnectionError("cut")

    return give()


async def sends(here, push, *blocks):
    """Push some blocks; those that do not end with "the end" are cut off."""
    offset = await here.aggregator.push_offset(ONE, push)
    await here.aggregator.push_blocks(ONE, push, offset, pieces(*blocks))


def test_an_upload_goes_on_where_it_was_cut_also_when_its_digest_is_known_by_then(desk):
    async def body(here):
        await here.open()
        push = Push(here.stamp, "ask1", "upload")
        with pytest.raises(ConnectionError):
            await sends(here, push, b"abc", b"def")
        assert await here.aggregator.push_offset(ONE, push) == 6
        known = replace(push, digest=blake3(b"abcdefthe end").hexdigest())
        assert await here.aggregator.push_offset(ONE, known) == 6
        await sends(here, known, b"the end")
        assert await here.aggregator.push_offset(ONE, known) == ENOUGH
        assert await here.aggregator.push_offset(ONE, push) == ENOUGH
        assert here.spool.path(known.digest, "one").read_bytes() == b"abcdefthe end"

    desk(body)


def test_another_upload_replaces_what_came_before_it(desk):
    async def body(here):
        await here.open()
        with pytest.raises(ConnectionError):
            await sends(here, Push(here.stamp, "ask1", "first"), b"abc")
        second = Push(here.stamp, "ask1", "second")
        assert await here.aggregator.push_offset(ONE, second) == 0
        assert not list(here.spool.growing.iterdir())
        await sends(here, second, b"the end")
        whole = blake3(b"the end").hexdigest()
        assert here.spool.has(whole, "one")
        assert await here.aggregator.push_offset(ONE, Push(here.stamp, "ask1", "third")) == 0
        assert not here.spool.has(whole, "one")

    desk(body)


def test_an_upload_that_another_has_replaced_takes_no_more_bytes(desk):
    """Its file has no name any more, and would grow unseen."""

    async def body(here):
        await here.open()
        first, second = Push(here.stamp, "ask1", "first"), Push(here.stamp, "ask1", "second")
        given = []

        async def endless():
            while True:
                given.append(b"abc")
                yield given[-1]
                await here.aggregator.push_offset(ONE, second)

        assert await here.aggregator.push_offset(ONE, first) == 0
        with pytest.raises(OpenFedError, match="W04"):
            await here.aggregator.push_blocks(ONE, first, 0, endless())
        assert len(given) == 2

    desk(body)


def test_an_upload_that_is_swept_while_it_begins_can_be_tried_again(desk, monkeypatch):
    async def body(here):
        await here.open()
        push = Push(here.stamp, "ask1", "upload")
        assert await here.aggregator.push_offset(ONE, push) == 0
        lock = fcntl.flock

        def swept(file, how):
            lock(file, how)
            Path(file.name).unlink()

        monkeypatch.setattr(fcntl, "flock", swept)
        with pytest.raises(TransportError, match="T14") as caught:
            await sends(here, push, b"the end")
        assert not caught.value.permanent

    desk(body)


@pytest.mark.parametrize("name", ["m" * 1_000_000, "\x1b[2J"])
def test_what_is_told_of_a_bad_name_is_short_and_can_be_printed(desk, name):
    async def body(here):
        await here.open()
        verdict = await here.answer(numbers={"n": (5.0,), name: (1.0,)})
        (reply,) = here.journal.ask("ask1").replies
        assert verdict.code == reply.code == "K25"
        assert len(reply.message) < 300 and reply.message.isprintable()

    desk(body)


def test_an_upload_is_another_s_only_by_name(desk):
    """Two sites may choose the same name, and the same bytes."""

    async def body(here):
        await here.open()
        push, two = Push(here.stamp, "ask1", "upload"), replace(ONE, name="two")
        with pytest.raises(ConnectionError):
            await sends(here, push, b"abc")
        assert await here.aggregator.push_offset(two, push) == 0
        await sends(here, push, b"the end")
        digest = blake3(b"abcthe end").hexdigest()
        other = await here.aggregator.push_offset(two, replace(push, digest=digest))
        assert other == 0

    desk(body)


def test_blocks_that_do_not_go_on_where_the_upload_is_are_refused(desk):
    async def body(here):
        await here.open()
        push = Push(here.stamp, "ask1", "upload")
        with pytest.raises(ConnectionError):
            await sends(here, push, b"abc")
        for offset in (0, 2, 4):
            with pytest.raises(OpenFedError, match="W04"):
                await here.aggregator.push_blocks(ONE, push, offset, pieces(b"the end"))
        assert await here.aggregator.push_offset(ONE, push) == 3

    desk(body)


def test_an_upload_of_which_the_aggregator_forgot_the_digest_is_found_again_by_it(desk):
    """The aggregator was started again between the last byte and the report."""

    async def body(here):
        await here.open()
        data = here.here.coded(UPDATE, {"n": (5.0,)}, here.model)
        digest = await here.upload(data, name="upload")
        here.aggregator._asks["ask1"].uploads.clear()
        push = Push(here.stamp, "ask1", "upload", digest)
        assert await here.aggregator.push_offset(ONE, push) == ENOUGH
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", digest, len(data)))
        assert verdict.ruling is Ruling.ACCEPTED

    desk(body)


def test_a_report_says_which_bytes_it_speaks_of(desk):
    async def body(here):
        await here.open()
        first = here.here.coded(UPDATE, {"n": (5.0,)}, here.model)
        old = await here.upload(first, name="first")
        await here.upload(here.here.coded(UPDATE, {"n": (6.0,)}, here.model), name="second")
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", old, len(first)))
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, "W05")

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
        newer = replace(here.stamp, protocol=(2, 9), capabilities=("packet/2", "magic/7"))
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


def test_bytes_that_are_no_packet_are_refused(desk):
    async def body(here):
        await here.open()
        found = await here.upload(b"not packet at all!")
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", found, 18))
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, "W01")

    desk(body)


def test_bytes_that_were_never_sent_are_refused(desk):
    async def body(here):
        await here.open()
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", "0" * 64, 18))
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, "W05")

    desk(body)


def test_uploads_are_bounded(desk):
    async def body(here):
        here.assignment = replace(here.assignment, limit=1000)
        await here.open()
        with pytest.raises(OpenFedError, match="W04"):
            await here.upload(bytes(1001))
        assert not list(here.spool.growing.iterdir())
        await here.upload(bytes(1000), name="again")
        push = Push(here.stamp, "ask1", "more")
        with pytest.raises(OpenFedError, match="W04"):
            await sends(here, push, bytes(600), bytes(401), b"the end")
        assert not list(here.spool.growing.iterdir())
        with pytest.raises(OpenFedError, match="R06"):
            await here.aggregator.push_offset(ONE, replace(push, ask="ask9"))
        with pytest.raises(OpenFedError, match="R06"):
            await here.aggregator.report(ONE, Report(here.stamp, "ask9", "0" * 64, 5))

    desk(body)


def test_a_digest_that_is_a_path_is_no_upload(desk):
    async def body(here):
        await here.open()
        verdict = await here.aggregator.report(
            ONE, Report(here.stamp, "ask1", "../../journal.sqlite", 5)
        )
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, "W05")

    desk(body)


FOREIGN = {
    "an update of another model": ("W14", {"base": "ab" * 32}),
    "an update of no model": ("W14", {"base": ""}),
    "another chain than the plan's": ("W22", {"chains": (make_chain([("bf16", {})]),) * 3}),
    "a chain of none": ("W22", {"chains": (make_chain([("zstd", {"level": 1})]),) * 3}),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_an_update_of_something_else_is_refused(desk, fault):
    code, about = FOREIGN[fault]

    async def body(here):
        await here.open()
        head = Head(signature_of(UPDATE), (Chain(),) * 3, {"n": (5.0,)}, here.model)
        head, source = replace(head, **about), Held(Record(UPDATE))
        if code == "W22":  # lossy chains are for floats; the header is what is looked at
            source = Held(Record({k: v for k, v in UPDATE.items() if k != "bn.count"}))
            head = replace(head, specs=source.specs, chains=head.chains[1:])
        data = b"".join(bytes(block) for block in packet_blocks(head, source))
        found = await here.upload(data)
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", found, len(data)))
        assert (verdict.ruling, verdict.code) == (Ruling.REFUSED, code)

    desk(body)


def test_each_transfer_is_told_with_its_bytes_and_what_they_stand_for(desk):
    async def body(here):
        await here.open()
        async for _ in here.aggregator.pull(ONE, Pull(here.stamp, here.model)):
            pass
        data = here.here.coded(UPDATE, {"n": (5.0,)}, here.model)
        await here.upload(data)
        down, up = (fields for kind, fields in here.events if kind == "transfer")
        who = {"round": 1, "task": "train", "ask": "ask1", "collaborator": "one"}
        assert {**down, "seconds": 0} == {
            **who, "direction": "down", "payload": "model", "bytes": 5, "raw": 5, "seconds": 0,
        }  # fmt: skip
        assert {**up, "seconds": 0} == {
            **who, "direction": "up", "payload": "update", "bytes": len(data), "raw": 28,
            "seconds": 0,
        }  # fmt: skip

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


def test_whoever_has_had_its_verdict_is_not_told_that_the_ask_is_over(desk):
    """It would only poll once more: a call a site and round."""

    async def body(here):
        await here.open()
        assert (await here.answer()).ruling is Ruling.ACCEPTED
        two = replace(ONE, name="two")
        assert (await here.answer(peer=two)).ruling is Ruling.ACCEPTED  # which closes it
        here.journal.open_ask("ask2", 1, 1, "train")
        another = replace(here.assignment, ask="ask2")
        await here.aggregator._offer(Ask("ask2", ("two",), 1), another, here.entries)
        held = Next(here.stamp, 0.0, holding=("ask1",))
        assert (await here.aggregator.next(ONE, held)).cancel == ()
        older = Next(here.stamp, 0.0, holding=("ask0", "ask1"))
        assert (await here.aggregator.next(ONE, older)).cancel == ("ask0",)

    desk(body)


def test_the_time_of_earlier_lives_counts_towards_the_deadline(desk):
    async def body(here):
        here.ask = Ask("ask1", ("one", "two"), 1, deadline_s=1000.0, elapsed_s=999.9)
        await here.open()
        await here.answer()
        row = await here.aggregator._answered("ask1", 1)
        assert row.met is True and row.elapsed_s >= 1000.0

    desk(body)


def test_an_upload_that_comes_while_a_reply_is_judged_takes_nothing_away(desk):
    async def body(here):
        await here.open()
        judge, judged, go_on = here.aggregator._judge, threading.Event(), threading.Event()

        def slowly(*given):
            found = judge(*given)
            judged.set()
            go_on.wait(10)
            return found

        here.aggregator._judge = slowly
        answering = asyncio.create_task(here.answer())
        await asyncio.to_thread(judged.wait, 10)
        other = Push(here.stamp, "ask1", "another")
        assert await here.aggregator.push_offset(ONE, other) == ENOUGH
        go_on.set()
        assert (await answering).ruling is Ruling.ACCEPTED
        (reply,) = here.journal.ask("ask1").replies
        assert here.spool.has(reply.digest, "one")

    desk(body)


def test_bytes_that_count_already_are_not_dropped_when_they_are_sent_again(desk):
    async def body(here):
        here.journal.open_ask("ask0", 1, 0, "validate")
        earlier = here.here.coded({}, {"n": (4.0,)}, here.model)
        found = blake3(earlier).hexdigest()
        here.spool.path(found, "one").write_bytes(earlier)
        here.journal.add_reply("ask0", Reply("one", found, len(earlier)))
        here.journal.open_ask("ask1", 1, 1, "train")
        await here.open()
        await here.upload(earlier, name="again")
        await here.aggregator.push_offset(ONE, Push(here.stamp, "ask1", "another"))
        assert here.spool.has(found, "one")

    desk(body)


def test_whoever_still_pulls_when_a_round_is_committed_is_told_that_it_is_over(desk):
    async def body(here):
        large = bytes(3 * BLOCK)
        digest, size = here.spool.put([large])
        payload = Payload("model", digest, size, (Blob(digest, size),))
        here.assignment = replace(here.assignment, payloads=(payload,))
        await here.open()
        with pytest.raises(OpenFedError, match="R05"):
            async for _ in here.aggregator.pull(ONE, Pull(here.stamp, digest)):
                here.spool.keep_only(set())

    desk(body)


def test_whoever_still_pushes_when_a_round_is_committed_learns_it_from_its_report(desk):
    async def body(here):
        await here.open()
        data = here.here.coded(UPDATE, {"n": (5.0,)}, here.model)

        async def blocks():
            yield data[:50]
            for name in ("one", "two"):  # the ask ends without this upload
                await here.aggregator.report(
                    replace(ONE, name=name), Report(here.stamp, "ask1", failure=Failure("K20", "x"))
                )
            here.spool.keep_only(set())
            yield data[50:]

        push = Push(here.stamp, "ask1", "upload")
        await here.aggregator.push_blocks(ONE, push, 0, blocks())
        found = blake3(data).hexdigest()
        verdict = await here.aggregator.report(ONE, Report(here.stamp, "ask1", found, len(data)))
        assert verdict.ruling is not Ruling.ACCEPTED

    desk(body)


# -- consent ---------------------------------------------------------------------------------------


SIGNED = b'{"name": "one", "public_key": "aa"}'


def test_a_site_that_has_not_shown_its_approval_is_refused_in_every_call(desk):
    def consent(peer, approval):
        if approval != SIGNED:
            raise PolicyError("R22", "no approval")

    async def body(here):
        here.aggregator = here.served(consent)
        await here.open()
        service, polling = here.aggregator, Next(here.stamp, 0.0)
        calls = [
            lambda: service.next(ONE, polling),
            lambda: anext(service.pull(ONE, Pull(here.stamp, here.model))),
            lambda: service.push_offset(ONE, Push(here.stamp, "ask1", "upload")),
            lambda: service.report(ONE, Report(here.stamp, "ask1", "0" * 64, 5)),
        ]
        for approval in (b"", SIGNED):  # a hello without facts only looks
            with contextlib.suppress(PolicyError):
                await service.hello(ONE, Hello(here.stamp, {}, approval))
        for call in calls:
            with pytest.raises(PolicyError) as caught:
                await call()
            assert caught.value.code == "R23"

        await service.hello(ONE, Hello(here.stamp, {"isolation": "process"}, SIGNED))
        assert (await service.next(ONE, polling)).assignment
        assert here.journal.fact("approval one") == SIGNED.decode(), "kept with the run"
        here.aggregator = here.served(consent)  # restarted
        await here.open()
        assert (await here.aggregator.next(ONE, polling)).assignment

    desk(body)
