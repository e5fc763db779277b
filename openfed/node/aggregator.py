"""The aggregator: serves collaborators, journals what they answer, runs the flow in a thread.

It decides nothing that `openfed.ask`, the flow or `admission` could decide. The order is always:
check, make durable, adopt, answer. It imports neither torch nor the user's code.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from openfed.ask.machine import (
    Accept,
    Ask,
    Close,
    Duplicate,
    Effect,
    Elapsed,
    Event,
    Exclude,
    Failed,
    Keep,
    Late,
    Refuse,
    Replied,
    Returned,
    Wait,
    step,
)
from openfed.codec.pipeline import Pipeline
from openfed.errors import CODES, CertificateError, OpenFedError, PolicyError, TaskError, WireError
from openfed.node.admission import admit, check_reply
from openfed.node.bell import Bell
from openfed.node.outgoing import Outgoing
from openfed.node.threads import opened, to_the_end
from openfed.parse import DIGEST
from openfed.pki.peer import COLLABORATOR
from openfed.pki.request import Request
from openfed.pki.roster import Roster
from openfed.plan.lock import Lock
from openfed.store.journal import LATE, AskRow, Journal, Reply
from openfed.store.ledger import APPROVED
from openfed.store.spool import Spool
from openfed.tensors.check import ABOUT
from openfed.tensors.record import Signature
from openfed.tensors.update import update_signature
from openfed.transport.base import Blocks
from openfed.typing import Emit, Numbers
from openfed.wire.messages import (
    ENOUGH,
    Assignment,
    Hello,
    Next,
    Orders,
    Payload,
    Peer,
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

T = TypeVar("T")

MAX_WAIT_S = 30.0
"""Longest that a `next` is held."""

TICK_S = 1.0
"""How often an open ask is looked at: its age, and who is revoked."""

GATHER_S = 10.0
"""How long an aggregator that has just begun waits for everybody on the roster, where the plan
names no sites: what follows is with those who are here."""

NOTHING: Numbers = {}

Consent = Callable[[Peer, bytes], None]
"""Raises PolicyError where a site has not approved the plan; given what the site shows. None: a
trial, where whoever has a certificate takes part."""

Renewing = Callable[[Request, Peer], Awaitable[tuple[bytes, bytes]]]
"""The way to the authority: a chain and the roots to trust, both PEM."""


Rosters = Callable[[], Roster | None]
"""The authority's roster as it is now; None: there is none."""


def no_roster() -> None:
    return None


async def nobody(request: Request, peer: Peer) -> tuple[bytes, bytes]:
    raise CertificateError("C57", "this aggregator knows no way to the authority")


class Interrupted(OpenFedError):
    """The aggregator was told to stop; the run can be resumed."""


@dataclass
class Upload:
    """What a collaborator is sending: one encoding of its reply. `digest`: once it is whole."""

    name: str
    digest: str = ""


@dataclass
class Open:
    """An ask that collaborators can see."""

    ask: Ask
    assignment: Assignment
    entries: Signature  # that a reply has to have
    opened: float  # monotonic
    since: float | None = None  # monotonic, less its age by then; None: its clock stands
    began: float = 0.0  # monotonic: when its clock was set going
    lacks: bool = False  # people have been told that it waits for sites that are gone
    uploads: dict[str, Upload] = field(default_factory=dict)  # by collaborator
    judging: set[str] = field(default_factory=set)  # whose reply is being looked at


class Aggregator:
    """One run's aggregator: the `Service` of transports and the `Port` of the flow's handle.

    All state lives on the event loop; `open` and `wait` are called from the flow's thread.
    """

    def __init__(
        self,
        lock: Lock,
        run: str,
        journal: Journal,
        spool: Spool,
        emit: Emit,
        monotonic: Callable[[], float] = time.monotonic,
        consent: Consent | None = None,
        renewing: Renewing = nobody,
        roster: Rosters = no_roster,
    ) -> None:
        self.lock, self.run, self.journal, self.spool = lock, run, journal, spool
        self.state, self.reason = RunState.RUNNING, ""
        self._emit, self._monotonic = emit, monotonic
        self._consent, self._renewing, self._roster = consent, renewing, roster
        self._began, self._lease_s = monotonic(), lock.plan.timeouts.idle
        uplink = Pipeline(lock.plan.compression_pipeline.uplink)
        self._chains = uplink.chains(update_signature(lock.signature))
        self._outgoing = Outgoing(spool, len(lock.plan.named))
        self._asks: dict[str, Open] = {}
        self._here: dict[str, bool] = {}  # who was seen -> whether it has heard the end
        self._heard: dict[str, float] = {}  # who has not left -> when it was heard last
        self._ruled: dict[str, str] = {}  # collaborator -> the ask of its last verdict
        self._refused: set[tuple[str, str]] = set()
        self._agreed: set[str] = set()  # whose approval is known to be in the journal
        self._offers, self._replies = Bell(), Bell()  # for collaborators; for the flow
        self._order = asyncio.Lock()  # one reply at a time is journaled and adopted
        self._loop = asyncio.get_running_loop()
        self._going: set[asyncio.Task[Any]] = set()
        self._stop: BaseException | None = None

    # -- Port: called from the flow's thread -----------------------------------------------------

    def open(self, ask: Ask, assignment: Assignment, entries: Signature) -> None:
        offer = self._offer(ask, assignment, entries)
        asyncio.run_coroutine_threadsafe(offer, self._loop).result()

    def wait(self, ask: str, seen: int, within_s: float | None) -> AskRow | None:
        answered = self._within(within_s, self._answered(ask, seen))
        return asyncio.run_coroutine_threadsafe(answered, self._loop).result()

    def present(self, fewest: int, within_s: float | None) -> tuple[str, ...]:
        gathered = self._within(within_s, self._gathered(fewest))
        return asyncio.run_coroutine_threadsafe(gathered, self._loop).result() or ()

    def up_s(self) -> float:
        return self._monotonic() - self._began

    def settle(self, round: int) -> None:
        asyncio.run_coroutine_threadsafe(self._settled(round), self._loop).result()

    async def _within(self, seconds: float | None, work: Coroutine[Any, Any, T]) -> T | None:
        try:
            return await asyncio.wait_for(work, seconds)
        except TimeoutError:
            return None

    async def _settled(self, round: int) -> None:
        async with self._order:
            kept = {id: o for id, o in self._asks.items() if o.assignment.round >= round}
            self._asks = kept
        self._offers.ring()  # whoever is still at work on one of them need not go on

    async def _gathered(self, fewest: int) -> tuple[str, ...]:
        while not self._stop:
            here, roster = self._present(), self._roster()
            left = GATHER_S - (self._monotonic() - self._began)
            complete = roster is not None and roster.collaborators <= set(here)
            if len(here) >= fewest and (complete or left <= 0):
                return here
            await self._replies.heard(TICK_S)
        raise self._stop

    def _present(self) -> tuple[str, ...]:
        """Who has been heard lately and is not revoked."""
        roster = self._roster()
        here = sorted(filter(self._is_here, self._heard))
        return tuple(name for name in here if roster is None or not roster.revoked(name))

    def _is_here(self, name: str) -> bool:
        """Whether it has been heard lately."""
        return self._heard.get(name, -math.inf) > self._monotonic() - self._lease_s

    async def _offer(self, ask: Ask, assignment: Assignment, entries: Signature) -> None:
        ask, effects = step(ask, Elapsed(ask.elapsed_s))  # a crash may have come before its close
        open = Open(ask, assignment, entries, self._monotonic())
        self._asks[ask.id] = open
        await asyncio.to_thread(self._write, ask, effects, None)
        self._adopt(open, ask, effects)
        self._offers.ring()
        if not ask.closed:
            self._to_the_end(self._watch(open))

    async def _answered(self, ask: str, seen: int) -> AskRow:
        while True:
            if self._stop:
                raise self._stop
            row = self.journal.ask(ask, seen)
            assert row is not None
            if row.met is not None or row.replies:
                return row
            await self._replies.heard()

    async def _watch(self, open: Open) -> None:
        """Close the ask at its deadline, and wait for nobody who is revoked meanwhile."""
        timed = open.ask.deadline_s is not None or open.ask.grace_s is not None
        while not open.ask.closed and not self._stop:
            if roster := self._roster():
                for name in filter(roster.revoked, open.ask.missing):
                    await self._leave_out(open, name)
            if timed:
                await self._age(open)
            else:
                self._lacks(open)  # nothing ends it by itself: people must know
            await self._replies.heard(self._look_s(open))

    def _look_s(self, open: Open) -> float:
        """How long to wait for the next look: exact at a deadline."""
        deadline, since = open.ask.deadline_s, open.since
        if deadline is None or since is None:
            return TICK_S
        return max(0.0, min(TICK_S, deadline - (self._monotonic() - since)))

    async def _age(self, open: Open) -> None:
        """The ask's age is journaled, so a restart does not begin anew. Its clock stands until a
        quorum can be had of those who are here."""
        event: Event
        if open.since is None:
            if self._lacks(open):
                return
            open.began = self._monotonic()
            open.since, event = open.began - open.ask.elapsed_s, Returned()
        else:
            seconds, deadline = self._monotonic() - open.since, open.ask.deadline_s
            due = open.ask.elapsed_s + TICK_S / 2
            if seconds < (due if deadline is None else min(due, deadline)):
                return  # one commit a look, not one a reply
            event = Elapsed(seconds, self._gone_since(open))
        async with self._order:
            if not open.ask.closed:
                ask, effects = step(open.ask, event)
                await asyncio.to_thread(self._write, ask, effects, None)
                self._adopt(open, ask, effects)

    def _lacks(self, open: Open) -> bool:
        """Whether no quorum can be had of those who are here; tells people for whom it waits."""
        ask = open.ask
        away = [name for name in ask.missing if not self._is_here(name)]
        lacks = len(ask.cohort) - len(ask.failed) - len(away) < ask.quorum
        if lacks and not open.lacks and (gone := [name for name in away if name in self._here]):
            open.lacks = True
            told = {"answers": len(ask.accepted), "quorum": ask.quorum, "gone": gone}
            self._emit("ask.waiting", {**self._about(open), **told})
        if open.lacks and not lacks:
            open.lacks = False
            self._emit("ask.resumed", self._about(open))
        return lacks

    def _gone_since(self, open: Open) -> frozenset[str]:
        """Who is missing, and was not heard since the ask's clock was set going."""
        heard = self._heard
        return frozenset(n for n in open.ask.missing if heard.get(n, -math.inf) < open.began)

    async def _leave_out(self, open: Open, name: str) -> None:
        """The ask goes on without a site that the authority has revoked."""
        reply = Reply(name, "", 0, "C18", "revoked while it was asked")
        async with self._order:
            if open.ask.awaits(name):
                ask, effects = step(open.ask, Failed(name, reply.code))
                await asyncio.to_thread(self._write, ask, effects, reply)
                told = {"collaborator": name, "role": COLLABORATOR, "code": reply.code}
                self._emit("node.refused", {**told, "message": f"{name} was {reply.message}"})
                self._adopt(open, ask, effects)

    def _to_the_end(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Work that goes on when its caller is cancelled: what is being journaled is adopted too.

        A fault that is no answer to a peer (the disk, a bug) stops the run, to be resumed.
        """
        task = self._loop.create_task(work)
        self._going.add(task)
        task.add_done_callback(self._gone)
        return asyncio.shield(task)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._going.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, PolicyError | WireError):
            self._stop = self._stop or error
            self._replies.ring()

    # -- the run ---------------------------------------------------------------------------------

    def end(self, state: RunState, reason: str) -> None:
        """Tell everyone that the run has ended."""
        self.state, self.reason = state, reason
        self._offers.ring()

    def interrupt(self, reason: str) -> None:
        """Stop the flow where it stands; the journal resumes it."""
        self._stop = Interrupted("S13", reason)
        self._replies.ring()

    async def everyone_told(self, within_s: float) -> None:
        """Wait until each collaborator that was here has heard that the run has ended."""
        until = self._monotonic() + within_s
        while not all(self._here.values()) and (left := until - self._monotonic()) > 0:
            await self._replies.heard(left)

    # -- Service ---------------------------------------------------------------------------------

    async def hello(self, peer: Peer, hello: Hello) -> Welcome:
        self._admit(peer, hello.stamp, greeting=True)
        with self._telling(peer):
            if self._consent:
                self._consent(peer, hello.approval)
        if hello.facts:  # none: somebody looks whether they would be admitted
            approval = hello.approval.decode() if self._consent else ""
            await asyncio.to_thread(self._greeted, peer.name, dict(hello.facts), approval)
            self._seen(peer.name)
            if level := hello.facts.get("isolation"):
                said = {"collaborator": peer.name, "isolation": level}
                self._emit("node.described", said)
        identity, head = self.journal.identity, self.journal.head
        return Welcome(self._stamp(hello.stamp), self.state, self._lease_s, identity, head)

    def _greeted(self, name: str, facts: dict[str, str], approval: str) -> None:
        """What a site tells of itself; its approval also goes into the ledger, once for each key
        that the authority has certified: a site cannot fill the disk with fresh ones."""
        told = {f"site {name}": json.dumps(facts, sort_keys=True)}
        with self.journal.transaction():
            known = self.journal.fact(_approval(name)) or "{}"
            if approval:
                told[_approval(name)] = approval
                shown = json.loads(approval)
                if shown["public_key"] != json.loads(known).get("public_key"):
                    self.journal.enter(APPROVED, {"collaborator": name, "approval": shown})
            self.journal.set_facts(told)

    async def next(self, peer: Peer, next: Next) -> Orders:
        self._admit(peer, next.stamp)
        at = self._seen(peer.name)
        until = self._monotonic() + min(next.wait_s, MAX_WAIT_S)
        try:
            orders = await self._orders_within(peer.name, next, until)
        except asyncio.CancelledError:  # it has gone, unless it has come back meanwhile
            if self._heard.get(peer.name) == at:
                del self._heard[peer.name]
            raise
        if orders.state.ended:
            self._here[peer.name] = True
            self._replies.ring()
        return replace(orders, head=self.journal.head)

    def _seen(self, name: str) -> float:
        """Note when a collaborator was heard."""
        self._heard[name] = self._monotonic()
        if name not in self._here:
            self._here[name] = False
            self._emit("node.joined", {"collaborator": name})
            self._replies.ring()  # a round may wait for it
        return self._heard[name]

    async def _orders_within(self, name: str, next: Next, until: float) -> Orders:
        while True:
            orders = self._orders(name, next)
            left = until - self._monotonic()
            if orders.state.ended or orders.assignment or orders.cancel or left <= 0:
                return orders
            await self._offers.heard(left)

    def _orders(self, name: str, next: Next) -> Orders:
        stamp = self._stamp(next.stamp)
        if self.state.ended:
            return Orders(stamp, self.state, self.reason, self._lease_s, cancel=next.holding)
        wanted = {id: o for id, o in self._asks.items() if o.ask.takes(name)}
        # after a restart no ask is open until the flow has come back to it: cancel nothing then
        over = (id for id in next.holding if id not in wanted and self._ruled.get(name) != id)
        cancel = tuple(over) if self._asks else ()
        for id, open in wanted.items():
            if id not in next.holding and open.ask.awaits(name):
                return Orders(stamp, self.state, "", self._lease_s, open.assignment, cancel)
        return Orders(stamp, self.state, "", self._lease_s, None, cancel)

    async def pull(self, peer: Peer, pull: Pull) -> Blocks:
        self._admit(peer, pull.stamp)
        asked = self._naming(peer.name, pull.digest)
        if asked is None:
            raise PolicyError("R05", f"no open assignment of {peer.name} names this blob")
        began = self._monotonic()
        offset = pull.offset
        try:
            while block := await self._outgoing.block(pull.digest, offset):
                offset += len(block)
                yield block
                del block
        except FileNotFoundError:  # the ask has been closed, and its blobs swept
            raise PolicyError("R05", f"{peer.name} need not have this blob any more") from None
        open, payload, size = asked
        self._moved(open.assignment, peer.name, "down", payload.name, size, payload.size, began)

    def _naming(self, name: str, digest: str) -> tuple[Open, Payload, int] | None:
        """The open ask of a collaborator that names this blob, for what, and the blob's size."""
        for open in self._asks.values():
            if open.ask.takes(name):
                for payload in open.assignment.payloads:
                    for blob in payload.blobs:
                        if blob.digest == digest:
                            return open, payload, blob.size
        return None

    async def push_offset(self, peer: Peer, push: Push) -> int:
        self._admit(peer, push.stamp)
        open = await self._wanted(peer, push)
        if open is None:
            return ENOUGH
        upload = open.uploads[peer.name]
        if not upload.digest:  # an earlier life may have taken it
            upload.digest = await asyncio.to_thread(self.spool.became, push.upload, peer.name)
        whole = upload.digest or push.digest
        if whole and self.spool.has(whole, peer.name):
            return ENOUGH
        return await asyncio.to_thread(self.spool.grown, push.upload, peer.name)

    async def push_blocks(self, peer: Peer, push: Push, offset: int, blocks: Blocks) -> None:
        self._admit(peer, push.stamp)
        open = await self._wanted(peer, push)
        if open is None or offset == ENOUGH:
            return
        began, limit = self._monotonic(), open.assignment.limit
        grow = partial(self.spool.grow, push.upload, peer.name, size=limit)
        async with opened(grow) as growing:
            if growing.at != offset:
                raise WireError("W04", f"expected bytes from {growing.at}, got from {offset}")
            async for block in blocks:
                self._check_latest(open, push, peer.name)
                await asyncio.to_thread(growing.append, block)
                del block  # or it would be held until the next one comes
            try:
                digest = await to_the_end(asyncio.to_thread(growing.finish, push.digest))
            except WireError as error:
                if error.code == "W04" and not open.ask.takes(peer.name):
                    return  # it is over meanwhile, and what came has been swept: the report says so
                raise
        try:
            self._check_latest(open, push, peer.name)
        except WireError:
            self._forget(digest, peer.name)
            raise
        open.uploads[peer.name].digest = digest
        raw = sum(spec.size for spec in open.entries) or growing.at
        self._moved(open.assignment, peer.name, "up", "update", growing.at, raw, began)

    def _check_latest(self, open: Open, push: Push, name: str) -> None:
        if open.uploads[name].name != push.upload:  # its file has been unlinked, and would grow on
            raise WireError("W04", "another upload has taken the place of this one")

    def _moved(
        self, asked: Assignment, name: str, direction: str, payload: str, size: int, raw: int,
        began: float,
    ) -> None:  # fmt: skip
        fields = {"round": asked.round, "task": asked.task, "ask": asked.ask, "collaborator": name}
        fields |= {"direction": direction, "payload": payload, "bytes": size, "raw": raw}
        self._emit("transfer", {**fields, "seconds": self._monotonic() - began})

    async def renew(self, peer: Peer, renew: Renew) -> Renewed:
        self._admit(peer, renew.stamp, greeting=True)
        chain, anchors = await self._renewing(renew.request, peer)
        return Renewed(self._stamp(renew.stamp), chain, anchors)

    async def report(self, peer: Peer, report: Report) -> Verdict:
        self._admit(peer, report.stamp)
        open = await self._offered(report.ask)
        if open is None:
            return self._past(peer.name, report)
        return await self._to_the_end(self._rule(peer.name, report, open))

    async def _rule(self, name: str, report: Report, open: Open) -> Verdict:
        """Check the reply, make it durable, adopt it, and only then say so."""
        reply, numbers = Reply(name, report.digest, report.size), NOTHING
        if open.ask.takes(name):  # what no longer counts is not looked at
            open.judging.add(name)  # until it is adopted, or refused: its bytes stay
            reply, numbers = await asyncio.to_thread(self._judge, name, report, open)
        event: Event = Replied(name, reply.digest)
        if reply.code or report.failure:
            event = Failed(name, reply.code)
        async with self._order:
            ask, effects = step(open.ask, event)
            await asyncio.to_thread(self._write, ask, effects, reply)
            ruling, code = _ruling(effects)
            self._tell(open, report, ruling, reply, numbers)
            self._adopt(open, ask, effects)
        open.judging.discard(name)
        self._ruled[name] = report.ask
        if ruling is Ruling.ACCEPTED and reply.code and report.failure is None:
            ruling, code = Ruling.REFUSED, reply.code
        message = reply.message or (CODES[code].title if code else "")
        counts = ruling in (Ruling.ACCEPTED, Ruling.DUPLICATE) and not report.failure
        receipt = self.journal.receipt(report.ask, name) if counts else b""
        return Verdict(self._stamp(report.stamp), ruling, code, message, receipt)

    # -- checks ----------------------------------------------------------------------------------

    def _admit(self, peer: Peer, stamp: Stamp, *, greeting: bool = False) -> None:
        """Refuse whoever does not belong here, and say so once."""
        with self._telling(peer):
            admit(self.lock, "" if greeting else self.run, peer, stamp)
            if not greeting and self._consent and peer.name not in self._agreed:
                if self.journal.fact(_approval(peer.name)) is None:
                    message = f"{peer.name} has not shown its approval of this plan"
                    raise PolicyError("R23", f"{message}: expected a Hello with it first")
                self._agreed.add(peer.name)

    @contextmanager
    def _telling(self, peer: Peer) -> Iterator[None]:
        try:
            yield
        except PolicyError as error:
            if (peer.name, error.code) not in self._refused:
                self._refused.add((peer.name, error.code))
                about = {"collaborator": peer.name, "role": peer.role}
                self._emit("node.refused", {**about, "code": error.code, "message": error.message})
            raise

    def _stamp(self, theirs: Stamp) -> Stamp:
        return Stamp(
            self.lock.plan.federation, self.run, self.lock.digest, theirs.operation, theirs.attempt
        )

    async def _offered(self, ask: str) -> Open | None:
        """The ask, if it is open; just after a restart, wait until the flow has come back to it."""
        while ask not in self._asks and not self.state.ended:
            row = self.journal.ask(ask)
            if row is None or row.met is not None:
                break
            await self._offers.heard()
        return self._asks.get(ask)

    async def _wanted(self, peer: Peer, push: Push) -> Open | None:
        """The ask that the upload is for; None where its report is enough.

        Raises: PolicyError R06: never asked.
        """
        open = await self._offered(push.ask)
        if open is None and self.journal.ask(push.ask) is not None:
            return None
        if open is None or peer.name not in open.ask.cohort:
            raise PolicyError("R06", f"{peer.name} was not asked {push.ask}")
        known = open.uploads.setdefault(peer.name, Upload(push.upload))
        if known.name != push.upload:
            if not open.ask.takes(peer.name) or peer.name in open.judging:
                return None
            self.spool.drop_growing(known.name, peer.name)  # one upload a site and ask
            if known.digest and known.digest != push.digest:
                self._forget(known.digest, peer.name)
            open.uploads[peer.name] = Upload(push.upload)
        return open

    def _forget(self, digest: str, name: str) -> None:
        """Drop what a site has uploaded, unless the same bytes are a reply that counts."""
        if not self.journal.counts(name, digest):
            self.spool.drop(digest, name)

    def _judge(self, name: str, report: Report, open: Open) -> tuple[Reply, Numbers]:
        """The reply to be journaled: accepted, or failed with a code, and its numbers."""
        if report.failure is not None:
            code = report.failure.code if report.failure.code in CODES else "K20"
            return Reply(name, "", 0, code, report.failure.message[:2000]), {}
        try:
            if not DIGEST.fullmatch(report.digest) or not self.spool.has(report.digest, name):
                raise WireError("W05", "the reported bytes were not uploaded")
            limit, chains = open.assignment.limit, self._chains
            with self.spool.packet(report.digest, name, limit=limit, allowed=chains) as packet:
                check_reply(self.lock, packet, open.assignment, open.entries)
        except (TaskError, WireError) as error:
            return Reply(name, "", 0, error.code, error.message[:2000]), {}
        return Reply(name, report.digest, packet.size), packet.numbers

    # -- carrying out ----------------------------------------------------------------------------

    def _adopt(self, open: Open, ask: Ask, effects: tuple[Effect, ...]) -> None:
        """Take over what is durable; wake the flow, and everyone if the ask is over."""
        open.ask = ask
        for effect in effects:
            match effect:
                case Close():
                    if not any(map(ask.takes, ask.missing)):
                        del self._asks[ask.id]
                    self._emit("ask.closed", self._closed(open, effect))
                    self._offers.ring()
                case Wait():
                    open.since = None
        self._replies.ring()

    def _write(self, ask: Ask, effects: tuple[Effect, ...], reply: Reply | None) -> None:
        with self.journal.transaction():
            if ask.deadline_s is not None:
                self.journal.set_elapsed(ask.id, ask.elapsed_s)
            for effect in effects:
                match effect:
                    case Accept() | Exclude():
                        assert reply is not None
                        self.journal.add_reply(ask.id, reply)
                    case Keep():
                        assert reply is not None
                        late = replace(reply, code=LATE, message=CODES[LATE].title)
                        self.journal.add_reply(ask.id, late)
                    case Close():
                        self.journal.close_ask(ask.id, effect.met)

    def _past(self, name: str, report: Report) -> Verdict:
        """The verdict on a report for an ask that is closed, or never was."""
        row = self.journal.ask(report.ask)
        if row is None:
            raise PolicyError("R06", f"{name} was not asked {report.ask}")
        mine = [reply for reply in row.replies if reply.collaborator == name]
        counted = any(reply.digest == report.digest for reply in mine)
        ruling = Ruling.DUPLICATE if counted else Ruling.LATE
        receipt = self.journal.receipt(report.ask, name) if counted else b""
        return Verdict(self._stamp(report.stamp), ruling, receipt=receipt)

    # -- telling people --------------------------------------------------------------------------

    def _closed(self, open: Open, close: Close) -> dict[str, Any]:
        seconds = self._monotonic() - open.opened
        missing = [name for name in open.ask.cohort if name not in close.accepted]
        told = {"accepted": close.accepted, "missing": missing, "seconds": seconds}
        return {**self._about(open), **told}

    def _about(self, open: Open) -> dict[str, Any]:
        asked = open.assignment
        return {"round": asked.round, "task": asked.task, "ask": open.ask.id}

    def _tell(
        self, open: Open, report: Report, ruling: Ruling, reply: Reply, numbers: Numbers
    ) -> None:
        asked, name = open.assignment, reply.collaborator
        fields = {"round": asked.round, "task": asked.task, "ask": asked.ask, "collaborator": name}
        if reply.code and ruling is Ruling.ACCEPTED:
            traceback = report.failure.traceback if report.failure else ""
            told = {"code": reply.code, "message": reply.message, "traceback": traceback}
            self._emit("task.failed", {**fields, **told})
            return
        short = {key: numbers[key][0] for key in sorted(ABOUT & numbers.keys())}
        self._emit("reply", {**fields, "ruling": ruling.value, "bytes": report.size, **short})


def _approval(name: str) -> str:
    """The journal's fact that holds a site's approval, as the site signed it."""
    return f"approval {name}"


def _ruling(effects: tuple[Effect, ...]) -> tuple[Ruling, str]:
    for effect in effects:
        match effect:
            case Accept() | Exclude() | Keep():
                return Ruling.ACCEPTED, ""
            case Duplicate():
                return Ruling.DUPLICATE, ""
            case Late():
                return Ruling.LATE, ""
            case Refuse():
                return Ruling.REFUSED, effect.code
    return Ruling.LATE, ""
