"""An aggregator whose clock, roster and peers a test holds."""

import asyncio

from openfed.ask.machine import Ask
from openfed.node.aggregator import Aggregator
from openfed.pki.roster import Member, Roster
from openfed.store.journal import Journal
from openfed.store.spool import Spool
from openfed.wire.messages import Assignment, Hello, Next, Peer, Stamp

LEASE_S = 60.0  # timeouts.idle of a plan that does not say
ENROLLED = "{enrolled: {minimum: 2}}"


class Gate:
    """An aggregator of an open federation, whose clock and roster the test holds."""

    def __init__(self, here, tmp_path):
        self.lock, self.events = here.lock, []
        self.journal, self.time = Journal(tmp_path / "gate" / "journal.sqlite"), 1000.0
        self.members = {"one": False, "two": False, "three": False}  # name -> revoked
        self.aggregator = Aggregator(
            here.lock,
            "r1",
            self.journal,
            Spool(tmp_path / "gate"),
            lambda kind, fields: self.events.append((kind, fields)),
            lambda: self.time,
            roster=self.roster,
        )

    def roster(self):
        known = self.members.items()
        members = tuple(Member("collaborator", name, b"", revoked) for name, revoked in known)
        return Roster("lab", 1, 0.0, members, frozenset())

    @property
    def stamp(self):
        return Stamp("lab", "r1", self.lock.digest, "op")

    async def hello(self, name, facts=True):
        told = {"isolation": "process"} if facts else {}
        await self.aggregator.hello(peer(name), Hello(self.stamp, told))

    async def ask(self, quorum, deadline_s=None, **policy):
        """Ask one and two; the ask as it stands."""
        self.journal.open_ask("ask1", 1, 0, "train")
        ask = Ask("ask1", ("one", "two"), quorum, deadline_s, **policy)
        assignment = Assignment("ask1", "train", 1, {}, (), True, 1 << 20)
        await self.aggregator._offer(ask, assignment, ())
        return self.aggregator._asks["ask1"]

    async def until(self, happened):
        while not happened():
            self.aggregator._replies.ring()
            await asyncio.sleep(0.001)

    def next(self, name):
        return asyncio.ensure_future(self.aggregator.next(peer(name), Next(self.stamp, 25.0)))

    async def after(self, seconds, waiting):
        """Let time pass, and wake those who look at it."""
        self.time += seconds
        self.aggregator._replies.ring()
        for _ in range(5):
            await asyncio.sleep(0)
        return waiting.done() and waiting.result()


def peer(name):
    return Peer("lab", "collaborator", name, 1, float("inf"))
