"""The collaborator's agent: asks for work, passes it to the task process, sends what is allowed.

It holds the keys and the connection, and never sees the data. Every chunk of a reply is checked
and encoded before it is sent, the whole is durable before it is reported, and what was sent once is
sent again unchanged.
"""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from openfed.codec.downlink import Decoded, lossy_entries, packet_specs
from openfed.codec.packet import Head, packet_limit
from openfed.codec.pipeline import Pipeline
from openfed.errors import PolicyError, TaskError, WireError
from openfed.exact.methods import MOST, hides, make_method, sums_signature
from openfed.flow.fedavg import task_settings
from openfed.flow.metrics import check_sums, declared
from openfed.node.encoding import Update, encode_reply, lossy_specs
from openfed.node.lease import Lease
from openfed.node.site_limits import (
    OWN,
    allowed_numbers,
    check_round,
    check_samples,
    check_sent,
    filtered,
    once,
)
from openfed.node.tail import Tail
from openfed.node.threads import opened, to_the_end
from openfed.node.trainer import Inputs, Result, Trainer
from openfed.plan.lock import Lock
from openfed.plan.site import Limits, Site
from openfed.store.local import RESIDUAL, TASK, LocalStore, Owed
from openfed.store.spool import WHOLE
from openfed.store.witness import FILE, Witness
from openfed.tasks.base import LIFT, SENDS, TRAIN, VALIDATE, Task
from openfed.tasks.seeds import derive
from openfed.tensors.check import check_entries, check_numbers, check_reports, frame_limit
from openfed.tensors.frame import Held, Source, source_blocks
from openfed.tensors.record import Record, Signature, is_local, layout_of
from openfed.tensors.update import travelling, update_signature
from openfed.transport.base import Blocks, Link
from openfed.transport.heard import hearing
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
    Report,
    Ruling,
    RunState,
    Stamp,
    Verdict,
    block_size,
)

WAIT_S = 25.0
"""How long a `next` may be held: shorter than what most firewalls call idle."""

FAREWELL_S = 5.0
"""How long the answer to a last report is waited for when the run has ended."""

OVER = frozenset({"R05", "R06"})
"""What the aggregator answers when an ask has been closed in the meantime."""

Said = Callable[[str], None]

Encode = Callable[[Tail], tuple[str, int, dict[str, str]]]
"""Encodes a reply; what `Agent._encode` returns."""

_RUN_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,63}")


@dataclass(frozen=True)
class Form:
    """The tensors of an answer: `entries` as the task gives them, `sent` as they leave."""

    entries: Signature = ()
    sent: Signature = ()


class Agent:
    """One collaborator in one run. `state_folder` is given the run's id; `site` is what the site
    has set for itself."""

    def __init__(
        self,
        name: str,
        lock: Lock,
        link: Link,
        trainer: Trainer,
        state_folder: Callable[[str], Path],
        said: Said,
        facts: Mapping[str, str] | None = None,
        approval: bytes = b"",
        site: Site | None = None,
        aggregator_key: bytes | None = None,
        lease: Lease | None = None,
    ) -> None:
        """`aggregator_key`: the identity key that the authority's roster has of the aggregator."""
        self.name, self.lock, self._trainer = name, lock, trainer
        self._lease = lease or Lease()
        self._link = hearing(link, self._lease.heard)
        self._limits = site.limits if site else Limits()
        self._filters, self._once = site.filters if site else (), once(site)
        self._state_folder, self._said, self._facts = state_folder, said, dict(facts or {})
        self._approval, self._aggregator_key = approval, aggregator_key
        self._run_id = ""
        self._working: dict[str, asyncio.Task[None]] = {}
        self._training: set[str] = set()  # of the asks at work, those that can still be dropped
        self._cancelled: set[str] = set()  # asks that the aggregator no longer waits for
        self._block = block_size(len(lock.plan.named))
        self._turn = asyncio.Lock()  # one task at a time, in the order of the asks
        self._updates = update_signature(lock.signature)
        self._moving = travelling(lock.signature)
        flow = lock.plan.flow
        self._method = make_method(flow.name, flow.settings) if flow else None
        self._uplink = Pipeline(lock.plan.compression_pipeline.uplink)
        self._downlink = Pipeline(lock.plan.compression_pipeline.downlink, down=True)

    async def run(self) -> tuple[RunState, str]:
        """Take part until the run ends; returns how it ended and why.

        Raises: TransportError, PolicyError, CertificateError: faults that trying again won't mend.
        OpenFedError S11: another agent of this name works here.
        """
        welcome = await self._link.hello(Hello(self._stamp(), self._facts, self._approval))
        self._run_id = welcome.stamp.run
        self._lease.grant(welcome.lease_s)
        if not _RUN_ID.fullmatch(self._run_id):
            raise WireError("W10", f"{self._run_id[:40]!r} is not the id of a run")
        folder = self._state_folder(self._run_id)
        self._store = LocalStore(folder)
        about = (self.name, self._run_id, self.lock.digest)
        self._witness = Witness(folder / FILE, *about, self._aggregator_key, self._said)
        keeping = asyncio.create_task(self._keep_lease())
        try:
            self._witness.greeted(welcome.identity)
            self._witness.told(welcome.head, self._witness.last)
            self._said(f"joined run {self._run_id}")
            for owed in self._store.unsettled():
                await self._settle(owed, await self._deliver(owed))
            ended = await self._take_part()
            await self._settle_all()
            if self._witness.last:
                self._said(f"for fx ledger verify --against: {self._witness.path}")
            return ended
        finally:
            keeping.cancel()
            for work in self._working.values():
                work.cancel()
            await asyncio.gather(*self._working.values(), return_exceptions=True)
            self._witness.close()
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
            self._lease.grant(orders.lease_s)
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
                self._training.add(orders.assignment.ask)

    async def _ordered(self) -> Orders:
        """The answer to `next`; meanwhile, a fault in the work at hand is raised at once, and once
        work is dropped it is asked for anew."""
        self._reap()
        while True:
            holding = tuple(ask for ask in self._working if ask not in self._cancelled)
            asking = Next(self._stamp(), min(WAIT_S, self._lease.seconds * 0.4), holding)
            since = self._witness.last
            call = asyncio.create_task(self._link.next(asking))
            try:
                while not call.done():
                    waited = {call, *self._working.values()}
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    if not self._reap().isdisjoint(holding) and not call.done():
                        break
                else:
                    self._witness.told(call.result().head, since)
                    return call.result()
            finally:
                call.cancel()

    def _reap(self) -> set[str]:
        """Forget finished work; what it could not report ends the agent. Returns: the asks whose
        work was dropped."""
        dropped = set()
        for ask, work in list(self._working.items()):
            if work.done():
                del self._working[ask]
                self._training.discard(ask)
                if work.cancelled():
                    dropped.add(ask)
                elif (error := work.exception()) is not None:
                    raise error
        return dropped

    async def _keep_lease(self) -> None:
        """Stop what is computed for an aggregator that gives no sign of life: when it is back, it
        asks again for what it still wants. What is encoded is owed, and is sent then."""
        while True:
            await self._lease.over()
            silence = f"nothing heard from the aggregator for {self._lease.seconds:g} s"
            stopped = ": the task at work is stopped" if self._training else ""
            self._said(f"{silence}{stopped}; still trying")
            for ask in self._training:
                self._working[ask].cancel()
            await self._lease.renewed()

    async def _work(self, assignment: Assignment) -> None:
        async with self._turn:
            owed = self._store.owed(assignment.ask)
            try:
                if owed is None or owed.ruling:
                    if owed is not None and self._once:
                        raise TaskError("K32", f"{assignment.task}: made once, and ruled on")
                    owed, verdict = await self._answer(assignment)
                else:
                    self._training.discard(assignment.ask)
                    verdict = await self._deliver(owed)
            except TaskError as error:
                self._training.discard(assignment.ask)
                self._said(f"{error}\n{error.traceback}".rstrip())
                failure = Failure(error.code, error.message, error.traceback)
                await self._link.report(Report(self._stamp(), assignment.ask, failure=failure))
                return
            except PolicyError as error:
                self._training.discard(assignment.ask)
                if error.code in OWN:
                    failure = Failure(error.code, error.message, "")
                    await self._link.report(Report(self._stamp(), assignment.ask, failure=failure))
                if error.code not in OVER:
                    raise
                self._said(f"{assignment.task} of round {assignment.round} is over already")
                return
            finally:
                self._training.discard(assignment.ask)
            await self._settle(owed, verdict)
            await self._tell_versions()
            self._store.sweep(payload.digest for payload in assignment.payloads)

    async def _deliver(self, owed: Owed) -> Verdict:
        """Send what is owed; the same bytes however often it is tried."""

        async def report() -> Report:
            return self._report(owed)

        push = Push(self._stamp(), owed.ask, owed.upload, owed.digest)
        return await self._link.push(push, partial(self._blocks, owed.digest), report)

    def _report(self, owed: Owed) -> Report:
        return Report(self._stamp(), owed.ask, owed.digest, owed.size)

    async def _settle(self, owed: Owed, verdict: Verdict) -> None:
        """Record the ruling; adopt, or forget, the states that the reply proposed."""
        accepted = verdict.ruling in (Ruling.ACCEPTED, Ruling.DUPLICATE)
        if accepted:
            kept = partial(self._witness.receipt, verdict.receipt, owed.ask, owed.digest)
            await to_the_end(asyncio.to_thread(kept))
        settling = asyncio.to_thread(self._store.settle, owed, verdict.ruling, accepted=accepted)
        await to_the_end(settling)
        if not accepted:
            self._said(f"a reply was {verdict.ruling.value} {verdict.code} {verdict.message}")

    async def _tell_versions(self) -> None:
        """What the task process runs on is known once it is ready: for the record of the run."""
        facts = {**self._facts, **self._trainer.versions}
        if facts != self._facts:
            self._facts = facts
            await self._link.hello(Hello(self._stamp(), facts, self._approval))

    async def _answer(self, assignment: Assignment) -> tuple[Owed, Verdict]:
        """Fetch, run, check; then encode and send at the same time, commit, and report."""
        self._allow(assignment)
        paths = {p.name: await self._fetch(p) for p in assignment.payloads}
        form = await asyncio.to_thread(self._form, assignment.task, paths["model"])
        state = self._store.state(TASK)
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
        result = await self._run(task, inputs, form)
        try:
            self._check(assignment, result, form)
            send = self._encode_then_send if self._once else self._encode_and_send
            encode = partial(self._encode, assignment, paths["model"], result, form)
            return await send(assignment, encode)
        finally:
            result.close()

    def _form(self, task: str, model: Path) -> Form:
        """What the answer to a task on the model in this file has to look like.

        Raises: TaskError K55: sums were asked for, and it is no state of the plan's method.
        """
        if task == LIFT and self._method is not None:
            with self._store.spool.open(model.name, limit=WHOLE) as frame:
                entries = sums_signature(self._method, frame.record().tensors)
            return Form(entries, entries)
        return Form(self._moving, self._updates) if task == TRAIN else Form()

    async def _run(self, task: Task, inputs: Inputs, form: Form) -> Result:
        """Raises: TaskError K30, K33: it took longer than site or plan allow, and was stopped."""
        seconds, code, whose = self._longest()
        try:
            async with asyncio.timeout(seconds):
                return await self._trainer.run(task, inputs, frame_limit(form.entries))
        except TimeoutError:
            message = f"{task.name}: stopped after {seconds:g} s, {whose}"
            raise TaskError(code, message) from None

    def _longest(self) -> tuple[float | None, str, str]:
        """How long a task may compute, in seconds, and who says so."""
        site, plan = self._limits.seconds, self.lock.plan.timeouts.task
        if site is not None and (plan is None or site <= plan):
            return site, "K30", "this site's limits.seconds"
        return plan, "K33", "the plan's timeouts.task"

    async def _encode_then_send(
        self, assignment: Assignment, encode: Encode
    ) -> tuple[Owed, Verdict]:
        """The whole is durable before its first byte leaves: it is never encoded twice."""
        self._training.discard(assignment.ask)
        tail, upload = Tail(self._block), secrets.token_hex(8)
        try:
            encoding = asyncio.to_thread(encode, tail)
            digest, size, states = await to_the_end(encoding)
        finally:
            tail.close()
        check_sent(self._limits, self._store.sent(), size)
        owed = Owed(assignment.ask, upload, digest, size, states)
        await to_the_end(asyncio.to_thread(self._store.owe, owed))
        return owed, await self._deliver(owed)

    async def _encode_and_send(
        self, assignment: Assignment, encode: Encode
    ) -> tuple[Owed, Verdict]:
        self._training.discard(assignment.ask)  # from here on it is reported, be it late
        tail, upload = Tail(self._block), secrets.token_hex(8)
        committed: asyncio.Future[Owed] = asyncio.get_running_loop().create_future()

        async def report() -> Report:
            return self._report(await committed)

        push = Push(self._stamp(), assignment.ask, upload)
        sending = asyncio.create_task(self._link.push(push, tail.blocks, report))
        try:
            encoding = asyncio.to_thread(encode, tail)
            digest, size, states = await to_the_end(encoding)
            owed = Owed(assignment.ask, upload, digest, size, states)
            await to_the_end(asyncio.to_thread(self._store.owe, owed))  # before it may be closed
            committed.set_result(owed)
            return owed, await sending
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            tail.close()

    def _allow(self, assignment: Assignment) -> None:
        """The gate: only what the approved plan says, as the approved plan says it."""
        plan, task = self.lock.plan, assignment.task
        named = task in {each.name for each in plan.tasks} and task in (*SENDS, VALIDATE)
        if not named or assignment.updates != (task in SENDS):
            raise PolicyError("R12", f"{task} is not a task of the approved plan")
        if dict(assignment.settings) != task_settings(plan, task):
            raise PolicyError("R12", f"{task}: other settings than those of the approved plan")
        check_round(self._limits, assignment.round, trains=assignment.updates)
        most = MOST if self._method else frame_limit(self.lock.signature)
        for payload in assignment.payloads:
            if (size := max(payload.size, *(blob.size for blob in payload.blobs), 0)) > most:
                raise PolicyError("R12", f"{payload.name}: {size} bytes, at most {most}")

    def _check(self, assignment: Assignment, result: Result, form: Form) -> None:
        """Everything but the values: raises TaskError K09, K21, K22, K24, K25, K31."""
        reports = self.lock.plan.reports
        allowed = declared(self.lock.plan.metrics, assignment.task, reports)
        check_numbers(result.numbers, allowed, trained=assignment.task == TRAIN)
        check_reports(result.numbers, reports if assignment.updates else ())
        check_sums(result.numbers)
        trained = result.trained.specs if assignment.updates and result.trained else ()
        for spec in trained:
            if is_local(spec.name, self.lock.plan.scope):
                raise TaskError("K09", f"{spec.name}: the plan keeps this entry at its site")
        if assignment.updates:
            check_entries(trained, form.entries)
            check_samples(self._limits, result.numbers)

    def _encode(
        self, assignment: Assignment, base: Path, result: Result, form: Form, tail: Tail
    ) -> tuple[str, int, dict[str, str]]:
        """Digest and size of the reply's packet, and the local states that it proposes."""
        spool, specs = self._store.spool, form.sent
        seed = derive(self.lock.plan.seed, assignment.round, self.name, assignment.task, "codec")
        numbers = allowed_numbers(self._limits, result.numbers)
        if self._method and hides(self._method):
            numbers = {**numbers, "n": (0.0,)}
        sent = Head(specs, self._uplink.chains(specs), numbers, base.name, seed)
        feedback = self._uplink.feedback and bool(lossy_specs(sent))
        before = self._store.state(RESIDUAL) if feedback else None
        states = {}
        with ExitStack() as stack:
            update: Source = Held(Record())
            if result.trained is not None and assignment.updates:
                opened = None
                if assignment.task == TRAIN:  # sums are no differences
                    opened = stack.enter_context(spool.open(base.name, limit=WHOLE))
                rest = before and stack.enter_context(spool.open(before, limit=WHOLE))
                left = frozenset(spec.name for spec in lossy_specs(sent)) if rest else frozenset()
                model = {spec.name: spec for spec in form.entries}
                whole = Update(specs, model, result.trained, opened, rest or None, left)
                update = filtered(whole, self._filters)
            digest, size, residual = encode_reply(spool, sent, update, tail, feedback=feedback)
        if residual is not None:
            states[RESIDUAL] = residual
        if result.local is not None:
            try:
                states[TASK] = spool.put(source_blocks(result.local))[0]
            except WireError as error:  # its file is the task's
                raise TaskError("K28", error.message) from error
        return digest, size, states

    async def _fetch(self, payload: Payload) -> Path:
        """The payload's frame in the spool: it is there, or one of its blobs is pulled and, where
        that is a packet, decoded.

        Raises: WireError W05: what was pulled is not what it should be.
        """
        spool, tried = self._store.spool, list[Blob]()
        fault = WireError("W14", f"{payload.name}: no form of it can be decoded here")
        while not spool.has(payload.digest):
            blob = next((b for b in payload.blobs if not b.base or spool.has(b.base)), None)
            if blob is None:
                raise fault
            try:
                await self._pull(blob)
                if blob.digest != payload.digest:
                    await to_the_end(asyncio.to_thread(self._decode, payload, blob))
            except WireError as error:
                if error.code != "W05" or blob in tried:
                    raise
                fault = error
                tried.append(blob)  # once more; what a broken transfer left has been dropped
                if blob.base:  # somebody has changed the base: without it, the whole form is next
                    spool.drop(blob.base)
        return spool.path(payload.digest)

    async def _pull(self, blob: Blob) -> None:
        """Its bytes, from where an earlier transfer ended; they can be had again, so no sync."""
        spool = self._store.spool
        if spool.has(blob.digest):
            return
        async with opened(partial(spool.grow, blob.digest, size=blob.size)) as growing:
            pull = Pull(self._stamp(), blob.digest, growing.at)
            async for block in self._link.pull(pull):
                await asyncio.to_thread(growing.append, block)
            await asyncio.to_thread(growing.finish, blob.digest, durable=False)

    def _decode(self, payload: Payload, blob: Blob) -> None:
        """The frame that a packet stands for; the same bits at every site, or an error."""
        spool, model = self._store.spool, self._moving
        chains = self._downlink.chains(model)
        with ExitStack() as stack:
            expected = packet_specs(model, self._downlink) if blob.base else model
            limit = packet_limit(expected, chains)
            packet = stack.enter_context(spool.packet(blob.digest, limit=limit, allowed=chains))
            if packet.head.base != blob.base or layout_of(packet.specs) != layout_of(expected):
                raise WireError("W14", f"{payload.name}: a packet of something else")
            base = stack.enter_context(spool.open(blob.base, limit=WHOLE)) if blob.base else None
            lossy = lossy_entries(model, self._downlink) if base else {}
            decoded = Decoded(model, packet, base or packet, lossy)
            into = stack.enter_context(spool.writing())
            for block in source_blocks(decoded):
                into.append(block)
            found, _ = into.finish(durable=False)
        spool.drop(blob.digest)
        if found != payload.digest:
            spool.drop(found)
            raise WireError("W05", f"{payload.name}: decodes to other bits than at the aggregator")

    async def _blocks(self, digest: str, offset: int) -> Blocks:
        if offset < ENOUGH:
            for block in self._store.spool.read(digest, offset, self._block):
                yield block

    def _stamp(self) -> Stamp:
        plan = self.lock.plan
        return Stamp(plan.federation, self._run_id, self.lock.digest, secrets.token_hex(8))
