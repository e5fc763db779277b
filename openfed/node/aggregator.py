"""The aggregator: serves collaborators, journals what they answer, runs the flow in a thread.

It decides nothing that `openfed.ask` or the flow could decide. The order is always: check, make
durable, adopt, answer. It imports neither torch nor the user's code.
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
    Late,
    Refuse,
    Replied,
    step,
)
from openfed.errors import CODES, OpenFedError, PolicyError, TaskError, WireError
from openfed.flow.metrics import check_sums, declared
from openfed.plan.lock import Lock
from openfed.store.journal import AskRow, Journal, Reply
from openfed.store.spool import Spool
from openfed.strategy.reduce import update_signature
from openfed.tensors.check import check_entries, check_finite, check_numbers
from openfed.tensors.frame import FrameFile
from openfed.transport.base import Blocks
from openfed.typing import Emit, Numbers
from openfed.wire.messages import (
    BLOCK,
    PROTOCOL,
    Assignment,
    Failure,
    Hello,
    Next,
    Orders,
    Peer,
    Pull,
    Push,
    Report,
    Ruling,
    RunState,
    Stamp,
    Verdict,
    Welcome,
)

LEASE_S = 60.0
"""How long a collaborator may go on with a task without hearing from the aggregator."""

MAX_WAIT_S = 30.0
"""Longest that a `next` is held."""

TICK_S = 1.0
"""How often the age of an ask with a deadline is journaled."""

_HEX = re.compile(r"[0-9a-f]{64}")


class Interrupted(OpenFedError):
    """The aggregator was told to stop; the run can be resumed."""


@dataclass
class Open:
    """An ask that collaborators can see."""

    ask: Ask
    assignment: Assignment
    since: float  # monotonic, less what earlier lives of the aggregator have counted
    began: dict[str, float] = field(default_factory=dict)  # collaborator -> handed out at


@dataclass
class Told:
    """What a collaborator was last told; for people, and to know when everyone has heard."""

    ended: bool = False
    facts: Mapping[str, str] = field(default_factory=dict)


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
    ) -> None:
        self.lock, self.run, self.journal, self.spool = lock, run, journal, spool
        self.state, self.reason = RunState.RUNNING, ""
        self.peers: dict[str, Told] = {}
        self.sent = self.received = 0  # bytes of frames, to and from all collaborators
        self._emit, self._monotonic = emit, monotonic
        self._asks: dict[str, Open] = {}
        self._changed = asyncio.Condition()
        self._order = asyncio.Lock()  # one reply at a time is journaled and adopted
        self._loop = asyncio.get_running_loop()
        self._interrupted: Interrupted | None = None
        self._updates = update_signature(lock.signature)
        self._numbers = declared(lock.plan.metrics)

    # -- Port: called from the flow's thread -----------------------------------------------------

    def open(self, ask: Ask, assignment: Assignment) -> None:
        asyncio.run_coroutine_threadsafe(self._offer(ask, assignment), self._loop).result()

    def wait(self, ask: str, seen: int) -> AskRow:
        return asyncio.run_coroutine_threadsafe(self._answered(ask, seen), self._loop).result()

    async def _offer(self, ask: Ask, assignment: Assignment) -> None:
        since = self._monotonic() - ask.elapsed_s
        ask, effects = step(ask, Elapsed(ask.elapsed_s))  # a crash may have come before its close
        self._asks[ask.id] = Open(ask, assignment, since)
        await self._adopt(self._asks[ask.id], ask, effects)
        await self._close(self._asks[ask.id], effects)
        if ask.deadline_s is not None and not ask.closed:
            self._loop.create_task(self._age(self._asks[ask.id]))

    async def _answered(self, ask: str, seen: int) -> AskRow:
        async with self._changed:
            while True:
                if self._interrupted:
                    raise self._interrupted
                row = self.journal.ask(ask)
                assert row is not None
                if row.met is not None or len(row.replies) > seen:
                    return row
                await self._changed.wait()

    async def _age(self, open: Open) -> None:
        """Close the ask at its deadline; its age is journaled, so a restart does not begin anew."""
        deadline = open.ask.deadline_s or 0.0
        while not open.ask.closed and not self._interrupted:
            left = deadline - (self._monotonic() - open.since)
            await asyncio.sleep(max(0.0, min(TICK_S, left)))
            async with self._order:
                ask, effects = step(open.ask, Elapsed(self._monotonic() - open.since))
                await asyncio.to_thread(self.journal.set_elapsed, ask.id, ask.elapsed_s)
                await self._adopt(open, ask, effects)
                await self._close(open, effects)

    # -- the run ---------------------------------------------------------------------------------

    async def end(self, state: RunState, reason: str) -> None:
        """Tell everyone that the run has ended."""
        self.state, self.reason = state, reason
        await self._notify()

    async def interrupt(self, reason: str) -> None:
        """Stop the flow where it stands; the journal resumes it."""
        self._interrupted = Interrupted("S13", reason)
        await self._notify()

    async def everyone_told(self, within_s: float) -> None:
        """Wait until each collaborator that was here has heard that the run has ended."""
        async with self._changed:
            told = self._changed.wait_for(lambda: all(p.ended for p in self.peers.values()))
            try:
                await asyncio.wait_for(told, within_s)
            except TimeoutError:
                return

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # -- Service ---------------------------------------------------------------------------------

    async def hello(self, peer: Peer, hello: Hello) -> Welcome:
        self._admit(peer, hello.stamp, greeting=True)
        self._seen(peer.name).facts = hello.facts
        return Welcome(self._stamp(hello.stamp), self.state, LEASE_S)

    async def next(self, peer: Peer, next: Next) -> Orders:
        self._admit(peer, next.stamp)
        self._seen(peer.name)
        until = self._monotonic() + min(next.wait_s, MAX_WAIT_S)
        async with self._changed:
            while True:
                orders = self._orders(peer.name, next)
                left = until - self._monotonic()
                if orders.state.ended or orders.assignment or orders.cancel or left <= 0:
                    break
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    continue
        if orders.state.ended:
            self.peers[peer.name].ended = True
            self._loop.create_task(self._notify())
        return orders

    def _seen(self, name: str) -> Told:
        if name not in self.peers:
            self.peers[name] = Told()
            self._emit("node.joined", {"collaborator": name})
        return self.peers[name]

    def _orders(self, name: str, next: Next) -> Orders:
        stamp = self._stamp(next.stamp)
        if self.state.ended:
            return Orders(stamp, self.state, self.reason, LEASE_S, cancel=next.holding)
        wanted = {id: o for id, o in self._asks.items() if _wants(o.ask, name)}
        # after a restart no ask is open until the flow has come back to it: cancel nothing then
        cancel = tuple(id for id in next.holding if id not in wanted) if self._asks else ()
        for id, open in wanted.items():
            if id not in next.holding:
                open.began.setdefault(name, self._monotonic())
                return Orders(stamp, self.state, "", LEASE_S, open.assignment, cancel)
        return Orders(stamp, self.state, "", LEASE_S, None, cancel)

    async def pull(self, peer: Peer, pull: Pull) -> Blocks:
        self._admit(peer, pull.stamp)
        if not any(
            payload.digest == pull.digest
            for open in self._asks.values()
            if _wants(open.ask, peer.name)
            for payload in open.assignment.payloads
        ):
            raise PolicyError("R05", f"no open assignment of {peer.name} names this blob")
        blocks = self.spool.read(pull.digest, pull.offset, BLOCK)
        while block := await asyncio.to_thread(next, blocks, b""):
            self.sent += len(block)
            yield block

    async def push_offset(self, peer: Peer, push: Push) -> int:
        self._admit(peer, push.stamp)
        if not await self._takes(peer, push):
            return push.size
        return await asyncio.to_thread(self.spool.grown, push.digest, peer.name)

    async def push_blocks(self, peer: Peer, push: Push, offset: int, blocks: Blocks) -> None:
        self._admit(peer, push.stamp)
        if not await self._takes(peer, push) or self.spool.has(push.digest, peer.name):
            return
        growing = await asyncio.to_thread(self.spool.grow, push.digest, peer.name, size=push.size)
        with growing:
            if growing.at != offset:
                raise WireError("W04", f"expected bytes from {growing.at}, got from {offset}")
            async for block in blocks:
                await asyncio.to_thread(growing.append, block)
                self.received += len(block)
            await asyncio.to_thread(growing.finish)

    async def report(self, peer: Peer, report: Report) -> Verdict:
        self._admit(peer, report.stamp)
        await self._offered(report.ask)
        async with self._order:
            reply, numbers = await self._judge(peer.name, report)
            open = self._asks.get(report.ask)
            if open is None:
                return self._past(peer.name, report)
            event: Event = Replied(peer.name, reply.digest)
            if reply.code:
                event = Failed(peer.name, reply.code)
            ask, effects = step(open.ask, event)
            await self._adopt(open, ask, effects, reply)
            ruling, code = _ruling(effects)
            self._tell(open, peer.name, report, ruling, reply, numbers)
            await self._close(open, effects)
        if ruling is Ruling.ACCEPTED and reply.code and report.failure is None:
            ruling, code = Ruling.REFUSED, reply.code
        message = reply.message or (CODES[code].title if code else "")
        return Verdict(self._stamp(report.stamp), ruling, code, message)

    # -- checks ----------------------------------------------------------------------------------

    def _admit(self, peer: Peer, stamp: Stamp, *, greeting: bool = False) -> None:
        """Refuse whoever does not belong to this run of this plan."""
        if stamp.protocol[0] != PROTOCOL[0]:
            spoken = f"{peer.name} speaks {stamp.protocol[0]}"
            raise PolicyError("R10", f"expected protocol {PROTOCOL[0]}, {spoken}")
        plan = self.lock.plan
        if peer.federation != plan.federation or stamp.federation != plan.federation:
            found = stamp.federation if peer.federation == plan.federation else peer.federation
            raise PolicyError("R03", f"expected federation {plan.federation}, got {found}")
        if peer.role != "collaborator" or peer.name not in plan.collaborators:
            raise PolicyError("R02", f"{peer.role} {peer.name} is not a collaborator of this plan")
        if stamp.plan_digest != self.lock.digest:
            ours, theirs = self.lock.digest[:16], stamp.plan_digest[:16]
            raise PolicyError("R01", f"expected plan {ours}..., {peer.name} has {theirs}...")
        if not greeting and stamp.run != self.run:
            raise PolicyError("R04", f"expected run {self.run}, got {stamp.run or 'none'}")

    def _stamp(self, theirs: Stamp) -> Stamp:
        return Stamp(
            self.lock.plan.federation, self.run, self.lock.digest, theirs.operation, theirs.attempt
        )

    async def _offered(self, ask: str) -> Open | None:
        """The ask, if it is open; just after a restart, wait until the flow has come back to it."""

        def known() -> bool:
            row = None if ask in self._asks else self.journal.ask(ask)
            return row is None or row.met is not None or self.state.ended

        async with self._changed:
            await self._changed.wait_for(known)
        return self._asks.get(ask)

    async def _takes(self, peer: Peer, push: Push) -> bool:
        """Whether the upload is wanted; for an ask that is closed, its report is enough.

        Raises: WireError: not a digest (W05), too large (W03). PolicyError R06: never asked.
        """
        if not _HEX.fullmatch(push.digest):
            raise WireError("W05", "expected a SHA-256 digest in hex")
        open = await self._offered(push.ask)
        if open is None and self.journal.ask(push.ask) is not None:
            return False
        if open is None or peer.name not in open.ask.cohort:
            raise PolicyError("R06", f"{peer.name} was not asked {push.ask}")
        if push.size > open.assignment.limit:
            limit = open.assignment.limit
            raise WireError("W03", f"{push.size} bytes announced, at most {limit} are allowed")
        return True

    async def _judge(self, name: str, report: Report) -> tuple[Reply, Numbers]:
        """The reply to be journaled: accepted, or failed with a code, and its numbers."""
        open = self._asks.get(report.ask)
        if report.failure is not None or open is None:
            failure = report.failure or Failure("R06", "not asked")
            code = failure.code if failure.code in CODES else "K20"
            return Reply(name, "", 0, code, failure.message[:2000]), {}
        try:
            if not _HEX.fullmatch(report.digest) or not self.spool.has(report.digest, name):
                raise WireError("W05", "the reported bytes were not uploaded")
            numbers = await asyncio.to_thread(self._check, name, report, open.assignment)
        except (TaskError, WireError) as error:
            return Reply(name, "", 0, error.code, error.message), {}
        return Reply(name, report.digest, report.size), numbers

    def _check(self, name: str, report: Report, assignment: Assignment) -> Numbers:
        """Everything the agent has checked already: the aggregator trusts no one."""
        with self.spool.open(report.digest, name, limit=assignment.limit) as frame:
            expected = self._updates if assignment.updates else ()
            check_entries(frame.layout.specs, expected)
            check_numbers(frame.layout.numbers, self._numbers, trained=assignment.updates)
            check_sums(frame.layout.numbers)
            _check_tensors(frame)
            return frame.layout.numbers

    # -- carrying out ----------------------------------------------------------------------------

    async def _adopt(
        self, open: Open, ask: Ask, effects: tuple[Effect, ...], reply: Reply | None = None
    ) -> None:
        """Make the effects durable, then adopt the new state."""
        await asyncio.to_thread(self._write, ask, effects, reply)
        open.ask = ask

    async def _close(self, open: Open, effects: tuple[Effect, ...]) -> None:
        """Wake the flow and everyone who waits; an ask that is over is no longer offered."""
        for effect in effects:
            if isinstance(effect, Close):
                self._asks.pop(open.ask.id, None)
                self._emit("ask.closed", self._closed(open, effect))
        await self._notify()

    def _write(self, ask: Ask, effects: tuple[Effect, ...], reply: Reply | None) -> None:
        with self.journal.transaction():
            for effect in effects:
                match effect:
                    case Accept() | Exclude():
                        assert reply is not None
                        self.journal.add_reply(ask.id, reply)
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
        return Verdict(self._stamp(report.stamp), ruling)

    # -- telling people --------------------------------------------------------------------------

    def _closed(self, open: Open, close: Close) -> dict[str, Any]:
        seconds = self._monotonic() - open.since
        missing = [name for name in open.ask.cohort if name not in close.accepted]
        fields = {"round": open.assignment.round, "task": open.assignment.task, "ask": open.ask.id}
        return {**fields, "accepted": close.accepted, "missing": missing, "seconds": seconds}

    def _tell(
        self, open: Open, name: str, report: Report, ruling: Ruling, reply: Reply, numbers: Numbers
    ) -> None:
        asked = open.assignment
        fields = {"round": asked.round, "task": asked.task, "ask": asked.ask, "collaborator": name}
        if reply.code and ruling is Ruling.ACCEPTED:
            traceback = report.failure.traceback if report.failure else ""
            told = {"code": reply.code, "message": reply.message, "traceback": traceback}
            self._emit("task.failed", {**fields, **told})
            return
        short = {
            key: numbers[key][0] for key in ("n", "seconds", "import_seconds") if key in numbers
        }
        self._emit("reply", {**fields, "ruling": ruling.value, "bytes": report.size, **short})


def _wants(ask: Ask, name: str) -> bool:
    return not ask.closed and name in ask.missing


def _ruling(effects: tuple[Effect, ...]) -> tuple[Ruling, str]:
    for effect in effects:
        match effect:
            case Accept() | Exclude():
                return Ruling.ACCEPTED, ""
            case Duplicate():
                return Ruling.DUPLICATE, ""
            case Late():
                return Ruling.LATE, ""
            case Refuse():
                return Ruling.REFUSED, effect.code
    return Ruling.LATE, ""


def _check_tensors(frame: FrameFile) -> None:
    for spec in frame.layout.specs:
        check_finite(spec.name, frame.tensor(spec))
