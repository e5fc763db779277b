"""Heads and receipts, from a signing aggregator to its sites: kept, believed, refused, compared."""

import asyncio
from dataclasses import replace

import pytest

from openfed.assemble import make_agent, make_aggregator, open_journal
from openfed.errors import WireError
from openfed.launch.ledger import verify_ledger
from openfed.node.trainer import DirectTrainer
from openfed.pki.keys import create_identity_key, signer
from openfed.store.audit import read_lines
from openfed.store.ledger import COUNTED, NOTHING, following, read_entry
from openfed.store.local import TASK, LocalStore
from openfed.store.witness import FILE, read_seen
from openfed.transport.inprocess import InProcess
from openfed.wire.messages import Head, Peer, Report, Ruling, RunState, Stamp
from openfed.workspace import Workspace

KEY = signer(create_identity_key())


class Passing:
    """A link that changes what the aggregator says; `next` and `push` carry heads and receipts."""

    def __init__(self, link, journal):
        self.link, self.journal = link, journal

    def __getattr__(self, name):
        return getattr(self.link, name)

    async def next(self, asking):
        orders = await self.link.next(asking)
        return replace(orders, head=self.head(orders.head))

    async def push(self, push, blocks, report):
        verdict = await self.link.push(push, blocks, report)
        return replace(verdict, receipt=self.receipt(verdict.receipt))

    def head(self, head):
        return head

    def receipt(self, line):
        return line


class Lab:
    """A signed run in one process; `links`: name -> what its site hears through."""

    def __init__(self, here, links=None, identity=KEY.public):
        self.here, self.links, self.identity, self.said = here, links or {}, identity, []

    def run(self, also=None):
        """The ends of the run and of each agent: states, or what they raised."""
        return asyncio.run(asyncio.wait_for(self._run(also), 60))

    async def _run(self, also):
        here = self.here
        journal = open_journal(here.root, "r1", here.lock, KEY)
        try:
            aggregator, go = make_aggregator(here.root, here.lock, "r1", journal, here.emit)
            going = asyncio.ensure_future(go())
            agents = [asyncio.create_task(self._agent(n, aggregator).run()) for n in here.toys]
            first = asyncio.FIRST_EXCEPTION
            await asyncio.wait([going, *agents], return_when=first)
            if also:
                await also(aggregator)
            aggregator.interrupt("the test is over")
            for each in agents:
                each.cancel()
            return await asyncio.gather(going, *agents, return_exceptions=True)
        finally:
            journal.close()

    def _agent(self, name, aggregator):
        here, peer = self.here, Peer("lab", "collaborator", name, 1, float("inf"))
        link = self.links.get(name, Passing)(InProcess(aggregator, peer), aggregator.journal)
        trainer = DirectTrainer(here.toys[name])
        about = (here.root, here.lock, name, link, trainer, self.said.append)
        return make_agent(*about, aggregator_key=self.identity)

    def kept(self, name):
        return self.here.folder / "agents" / name / FILE

    def verified(self, **options):
        given = {"path": None, "against": (), "key": KEY.public.hex()} | options
        return verify_ledger(Workspace(self.here.root), **given)


@pytest.fixture
def signed(lab):
    def make(rounds=3, **options):
        toys = {"one": lab.toy(1.0, 10), "two": lab.toy(-0.5, 30)}
        return Lab(lab(toys, rounds=rounds), **options)

    return make


def test_every_site_has_a_receipt_of_every_reply_that_counts(signed):
    here = signed()
    ended, *agents = here.run()
    assert ended.state == "completed" and agents == [(RunState.COMPLETED, "")] * 2
    found = here.verified()
    assert found.all_faults == ()
    entries = map(read_entry, read_lines(here.here.root / "save" / "ledger.jsonl"))
    counted = [entry for entry in entries if entry.kind == COUNTED]
    for kept, name in zip(found.kept, ("one", "two"), strict=True):
        mine = [e.content["digest"] for e in counted if e.content["collaborator"] == name]
        assert [each.digest for each in kept.included] == mine and len(mine) == 7
        assert all(each.accepted for each in kept.included)
        seen = [read_seen(line) for line in read_lines(here.kept(name))]
        assert seen[-1].head == found.head, "the last head is that of the end"
        assert {each.key for each in seen} == {KEY.public.hex()}


def test_a_reply_that_is_reported_again_gets_the_same_receipt(signed):
    here = signed(rounds=1)
    answers = []

    async def again(aggregator):
        peer = Peer("lab", "collaborator", "one", 1, float("inf"))
        stamp = Stamp("lab", "r1", here.here.lock.digest, "op")
        for row in aggregator.journal.asks():
            for reply in row.replies:
                if reply.collaborator == "one":
                    report = Report(stamp, row.id, reply.digest, reply.size)
                    answers.append(await aggregator.report(peer, report))
                    wrong = replace(report, digest="0" * 64)
                    answers.append(await aggregator.report(peer, wrong))

    here.run(again)
    given = [read_seen(line).receipt for line in read_lines(here.kept("one"))]
    same = [answer for answer in answers if answer.ruling is Ruling.DUPLICATE]
    assert [read_entry(each.receipt) for each in same] == [each for each in given if each]
    assert len(same) == 3
    assert all(each.receipt == b"" for each in answers if each.ruling is not Ruling.DUPLICATE)


class Stolen(Passing):
    """The receipt of the other site."""

    def receipt(self, line):
        told = read_entry(line).content
        return self.journal.receipt(told["ask"], "one") or b"{}"


class Forged(Passing):
    def receipt(self, line):
        entry = read_entry(line)
        before = Head(entry.number - 1, entry.previous)
        other = signer(create_identity_key())
        about = (entry.kind, entry.content, "r1", read_seen_plan(self.journal), other.sign)
        return following(before, entry.at, *about).line()


def read_seen_plan(journal):
    return journal.fact("plan_digest")


class Older(Passing):
    """An aggregator whose disk was put back: its ledger is shorter than it was."""

    def head(self, head):
        return read_entry(self.journal.entries()[4]).head if head.number > 12 else head


class Unsigned(Passing):
    def head(self, head):
        return replace(head, signature=b"")


@pytest.mark.parametrize(
    ("link", "code", "words"),
    [
        (Stolen, "J07", "receipt"),
        (Forged, "J07", "not signed by the aggregator's key"),
        (Unsigned, "J07", "not signed by the aggregator's key"),
        (Older, "J05", "now ends with 5"),
    ],
)
def test_a_site_that_is_told_a_lie_stops_and_says_so(signed, link, code, words):
    here = signed(links={"two": link})
    _, _, two = here.run()
    assert isinstance(two, WireError) and two.code == code and words in str(two)


def test_a_reply_with_a_wrong_receipt_is_not_settled_and_its_state_not_adopted(signed):
    here = signed(links={"two": Stolen})
    here.run()
    store = LocalStore(here.here.folder / "agents" / "two")
    assert store.state(TASK) is None and len(store.unsettled()) == 1
    store.close()


def test_an_aggregator_with_another_key_than_the_rosters_is_refused_at_once(signed):
    here = signed(identity=signer(create_identity_key()).public)
    _, one, _ = here.run()
    assert isinstance(one, WireError) and one.code == "J07" and "sha256:" in str(one)
    assert not here.here.toys["one"].seen


class TwoFaced(Passing):
    """The aggregator itself tells this site another history, signed with its own key."""

    def other(self):
        found, head = [], NOTHING
        for entry in map(read_entry, self.journal.entries()):
            content = {**entry.content, "note": "only for you"} if entry.number == 6 else {}
            told = (entry.kind, content or entry.content, "r1", read_seen_plan(self.journal))
            found.append(following(head, entry.at, *told, KEY.sign))
            head = found[-1].head
        return found

    def head(self, head):
        return self.other()[head.number - 1].head

    def receipt(self, line):
        return self.other()[read_entry(line).number - 1].line()


def test_two_histories_are_found_when_what_the_sites_were_told_is_compared(signed):
    here = signed(links={"two": TwoFaced})
    ended, *agents = here.run()
    assert ended.state == "completed" and agents == [(RunState.COMPLETED, "")] * 2, "all seems well"
    found = here.verified()
    one, two = found.kept
    assert found.faults == one.faults == ()
    assert {fault.code for fault in two.faults} == {"J05"}
    assert min(fault.number for fault in two.faults) >= 6
    assert all("two was told of one with hash" in fault.message for fault in two.faults)
    exported = here.here.root / "save" / "ledger.jsonl"
    mine = here.verified(path=exported, against=[here.kept("one")])
    assert {kept.collaborator for kept in mine.kept} == {"one", "two"}
