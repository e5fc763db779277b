"""The collaborator's agent: asks for work, passes it to the task process, sends what is allowed.

It holds the keys and the connection, and never sees the data. Every reply is checked, encoded and
made durable before the first byte of it is sent; what was sent once is sent again unchanged.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

from openfed.errors import PolicyError, TaskError, WireError
from openfed.flow.fedavg import task_settings
from openfed.flow.metrics import check_sums, declared
from openfed.node.trainer import Inputs, Trainer
from openfed.plan.lock import Lock
from openfed.store.local import LocalStore, Owed
from openfed.strategy.reduce import difference, update_signature
from openfed.tasks.base import Outcome, Task
from openfed.tasks.seeds import derive
from openfed.tensors.check import check_entries, check_finite, check_numbers, frame_limit
from openfed.tensors.frame import blocks
from openfed.tensors.record import Record, is_local, signature_of
from openfed.transport.base import Blocks, Link
from openfed.typing import Tensors
from openfed.wire.messages import (
    BLOCK,
    Assignment,
    Failure,
    Hello,
    Next,
    Orders,
    Payload,
    Pull,
    Push,
    Report,
    Ruling,
    RunState,
    Stamp,
)

WAIT_S = 25.0
"""How long a `next` may be held: shorter than what most firewalls call idle."""

FAREWELL_S = 5.0
"""How long the answer to a last report is waited for when the run has ended."""

OVER = frozenset({"R05", "R06"})
"""What the aggregator answers when an ask has been closed in the meantime."""

Said = Callable[[str], None]

_RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")


class Agent:
    """One collaborator in one run. `state_folder` is given the run's id."""

    def __init__(
        self,
        name: str,
        lock: Lock,
        link: Link,
        trainer: Trainer,
        state_folder: Callable[[str], Path],
        said: Said,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.lock, self._link, self._trainer = name, lock, link, trainer
        self._state_folder, self._said, self._facts = state_folder, said, dict(facts or {})
        self._run_id = ""
        self._working: dict[str, asyncio.Task[None]] = {}
        self._training: set[str] = set()  # of the asks at work, those that can still be dropped
        self._cancelled: set[str] = set()  # asks that the aggregator no longer waits for
        self._turn = asyncio.Lock()  # one task at a time, in the order of the asks
        self._updates = update_signature(lock.signature)

    async def run(self) -> tuple[RunState, str]:
        """Take part until the run ends; returns how it ended and why.

        Raises: TransportError, PolicyError, CertificateError: faults that trying again won't mend.
        OpenFedError S11: another agent of this name works here.
        """
        welcome = await self._link.hello(Hello(self._stamp(), self._facts))
        self._run_id = welcome.stamp.run
        if not _RUN_ID.fullmatch(self._run_id):
            raise WireError("W10", f"{self._run_id[:40]!r} is not the id of a run")
        self._store = LocalStore(self._state_folder(self._run_id))
        self._said(f"joined run {self._run_id}")
        try:
            for owed in self._store.unsettled():
                await self._deliver(owed)
            ended = await self._take_part()
            await self._settle_all()
            return ended
        finally:
            for work in self._working.values():
                work.cancel()
            await asyncio.gather(*self._working.values(), return_exceptions=True)
            self._store.close()

    async def _settle_all(self) -> None:
        """The run is over: drop what is still training, record rulings that are on their way."""
        for ask in self._training:
            self._working[ask].cancel()
        if self._working:
            await asyncio.wait(self._working.values(), timeout=FAREWELL_S)

    async def _take_part(self) -> tuple[RunState, str]:
        while True:
            orders = await self._ordered()
            if orders.state.ended:
                self._said(
                    f"run {orders.state.value}{': ' if orders.reason else ''}{orders.reason}"
                )
                return orders.state, orders.reason
            for ask in orders.cancel:
                self._cancelled.add(ask)
                if ask in self._training:  # what is encoded is reported, be it late
                    self._working[ask].cancel()
            if orders.assignment and orders.assignment.ask not in self._working:
                work = asyncio.create_task(self._work(orders.assignment))
                self._working[orders.assignment.ask] = work

    async def _ordered(self) -> Orders:
        """The answer to one `next`; meanwhile, a fault in the work at hand is raised at once."""
        self._reap()
        holding = tuple(ask for ask in self._working if ask not in self._cancelled)
        asking = Next(self._stamp(), WAIT_S, holding)
        call = asyncio.create_task(self._link.next(asking))
        try:
            while not call.done():
                waited = {call, *self._working.values()}
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                self._reap()
            return call.result()
        finally:
            call.cancel()

    def _reap(self) -> None:
        """Forget finished work; what it could not report ends the agent."""
        for ask, work in list(self._working.items()):
            if work.done():
                del self._working[ask]
                if not work.cancelled() and (error := work.exception()) is not None:
                    raise error

    async def _work(self, assignment: Assignment) -> None:
        async with self._turn:
            owed = self._store.owed(assignment.ask)
            try:
                if owed is None or owed.ruling:
                    self._training.add(assignment.ask)
                    owed = await self._answer(assignment)
            except TaskError as error:
                self._said(f"{error}\n{error.traceback}".rstrip())
                failure = Failure(error.code, error.message, error.traceback)
                await self._link.report(Report(self._stamp(), assignment.ask, failure=failure))
                return
            except PolicyError as error:
                if error.code not in OVER:
                    raise
                self._said(f"{assignment.task} of round {assignment.round} is over already")
                return
            finally:
                self._training.discard(assignment.ask)
            await self._deliver(owed)
            await self._tell_versions()
            self._store.sweep(payload.digest for payload in assignment.payloads)

    async def _deliver(self, owed: Owed) -> None:
        """Send what is owed and record the ruling; the same bytes however often it is tried."""
        push = Push(self._stamp(), owed.ask, owed.digest, owed.size)
        await self._link.push(push, lambda offset: self._blocks(owed.digest, offset))
        verdict = await self._link.report(Report(self._stamp(), owed.ask, owed.digest, owed.size))
        accepted = verdict.ruling in (Ruling.ACCEPTED, Ruling.DUPLICATE)
        await asyncio.to_thread(self._store.settle, owed, verdict.ruling.value, accepted=accepted)
        if not accepted:
            self._said(f"a reply was {verdict.ruling.value} {verdict.code} {verdict.message}")

    async def _tell_versions(self) -> None:
        """What the task process runs on is known once it is ready: for the record of the run."""
        facts = {**self._facts, **self._trainer.versions}
        if facts != self._facts:
            self._facts = facts
            await self._link.hello(Hello(self._stamp(), facts))

    async def _answer(self, assignment: Assignment) -> Owed:
        """Fetch, run, check, encode, commit."""
        self._allow(assignment)
        paths = {p.name: await self._fetch(p) for p in assignment.payloads}
        state = self._store.state()
        local = self._store.spool.path(state) if state else None
        inputs = Inputs(paths["model"], paths.get("frozen"), local)
        seed = derive(self.lock.plan.seed, assignment.round, self.name, assignment.task)
        task = Task(
            assignment.task,
            assignment.round,
            self.lock.plan.rounds,
            self.name,
            seed,
            assignment.settings,
        )
        outcome = await self._trainer.run(task, inputs, assignment.limit)
        return await asyncio.to_thread(self._commit, assignment, paths["model"], outcome)

    def _allow(self, assignment: Assignment) -> None:
        """The gate: only what the approved plan says, as the approved plan says it."""
        plan, task = self.lock.plan, assignment.task
        named = task in {each.name for each in plan.tasks} and task in ("train", "validate")
        if not named or assignment.updates != (task == "train"):
            raise PolicyError("R12", f"{task} is not a task of the approved plan")
        if dict(assignment.settings) != task_settings(plan, task):
            raise PolicyError("R12", f"{task}: other settings than those of the approved plan")
        most = frame_limit(self.lock.signature)
        for payload in assignment.payloads:
            if payload.size > most:
                raise PolicyError("R12", f"{payload.name}: {payload.size} bytes, at most {most}")

    def _commit(self, assignment: Assignment, base: Path, outcome: Outcome) -> Owed:
        """Turn the outcome into the reply's frame; it and the new local state are one commit."""
        update = self._update(outcome.tensors, base) if assignment.updates else {}
        allowed = declared(self.lock.plan.metrics, assignment.task)
        check_numbers(outcome.numbers, allowed, trained=assignment.updates)
        check_sums(outcome.numbers)
        local = None if outcome.local is None else blocks(Record(outcome.local))
        return self._store.owe(assignment.ask, blocks(Record(update, outcome.numbers)), local)

    def _update(self, trained: Tensors, base: Path) -> Tensors:
        """`trained - base`, checked: the only way for tensors out of this site.

        Raises: TaskError K09, K21 to K23.
        """
        for name in trained:
            if is_local(name, self.lock.plan.scope):
                raise TaskError("K09", f"{name}: the plan keeps this entry at its site")
        expected = tuple(
            s for s in self.lock.signature if s.name in {u.name for u in self._updates}
        )
        check_entries(signature_of(trained), expected)
        for name, value in trained.items():
            check_finite(name, value)
        with self._store.spool.open(base.name, limit=1 << 62) as frame:
            model = frame.record().tensors
        update = difference(trained, model, expected)
        for name, value in update.items():
            check_finite(name, value)
        return update

    async def _fetch(self, payload: Payload) -> Path:
        """The payload's blob, from the spool or the aggregator, whole and checked."""
        spool = self._store.spool
        try:
            await self._grow(payload)
        except WireError as error:
            if error.code != "W05":
                raise
            await self._grow(payload)  # what a power cut left of it has been dropped
        return spool.path(payload.digest)

    async def _grow(self, payload: Payload) -> None:
        spool = self._store.spool
        if spool.has(payload.digest):
            return
        with await asyncio.to_thread(spool.grow, payload.digest, size=payload.size) as growing:
            pull = Pull(self._stamp(), payload.digest, growing.at)
            async for block in self._link.pull(pull):
                await asyncio.to_thread(growing.append, block)
            await asyncio.to_thread(growing.finish)

    async def _blocks(self, digest: str, offset: int) -> Blocks:
        read = self._store.spool.read(digest, offset, BLOCK)
        while block := await asyncio.to_thread(next, read, b""):
            yield block

    def _stamp(self) -> Stamp:
        plan = self.lock.plan
        return Stamp(plan.federation, self._run_id, self.lock.digest, secrets.token_hex(8))
