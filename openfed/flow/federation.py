"""The federation handle: what a flow talks to, and how a flow survives a crash.

A flow is a plain function on this handle. It runs from its beginning after every restart and is
answered from the journal for everything that has happened, so it must take replies, time and
randomness from here and carry state across rounds in `rounds` only.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from openfed.ask.machine import Ask, Event, Failed, Replied, step
from openfed.codec.packet import packet_limit
from openfed.codec.pipeline import Pipeline
from openfed.errors import OpenFedError
from openfed.flow import metrics as scores
from openfed.flow.offers import Offers, frames
from openfed.plan.lock import Lock
from openfed.store.journal import AskRow, Journal, Turn
from openfed.store.ledger import DECODED
from openfed.store.packets import PacketFile
from openfed.store.scratch import scratch
from openfed.store.spool import WHOLE, Spool, blob_name
from openfed.strategy.base import weight_of
from openfed.strategy.reduce import Rule, Weighted, added, reduce_updates, weighted_mean
from openfed.strategy.screens import Screening
from openfed.tasks.seeds import derive
from openfed.tensors.check import is_finite
from openfed.tensors.frame import digest
from openfed.tensors.record import Kind, Record, Signature
from openfed.tensors.update import travelling, update_signature
from openfed.typing import Emit, Json, Numbers, Tensors
from openfed.wire.messages import Assignment, Payload

State = dict[str, Any]
"""What a flow carries from round to round: tensors, and values that JSON can hold, by name."""


class Port(Protocol):
    """How the handle reaches collaborators. Its methods are called from the flow's thread."""

    def open(self, ask: Ask, assignment: Assignment, entries: Signature) -> None:
        """Offer the assignment to the cohort until the ask is closed. A reply has to have just
        these entries."""
        ...

    def wait(self, ask: str, seen: int, within_s: float | None) -> AskRow | None:
        """Block until the ask has more than `seen` replies in the journal, or is closed; with
        those after them. None: not within so many seconds."""
        ...

    def present(self, fewest: int, within_s: float | None) -> tuple[str, ...]:
        """Block until at least so many collaborators are here; who is, sorted. Empty: they have
        not come within so many seconds."""
        ...

    def settle(self, round: int) -> None:
        """From here on no late reply to an ask of an earlier round is kept."""
        ...

    def up_s(self) -> float:
        """Seconds that this life of the aggregator has lasted."""
        ...


_SITES = "sites/"
"""Notes of who took part in a round, where the plan does not name the sites."""

_MEMORY = "screen"
"""What of a flow's state holds what the screen remembers."""

_UP = "up_s"
"""The fact that holds how long earlier lives of the aggregator have lasted, in seconds."""


class TimeOver(OpenFedError):
    """The plan's `stop.after` has passed in the middle of a round."""


@dataclass(frozen=True)
class Answer:
    """One accepted reply."""

    collaborator: str
    digest: str
    size: int
    numbers: Numbers


class Federation:
    """The handle of one run. Not shared between threads."""

    def __init__(
        self,
        lock: Lock,
        port: Port,
        journal: Journal,
        spool: Spool,
        emit: Emit,
        clock: Callable[[], float],
        initial: Callable[[], Tensors],
        aggregate: Rule = weighted_mean,
        screen: Screening | None = None,
    ) -> None:
        """`aggregate`: what makes one update of many; it sees floating entries only. `screen`: what
        chooses, weighs or scales whole updates before. `initial` reads the first model: nobody
        else holds on to it, which may be large."""
        self.plan, self.signature = lock.plan, lock.signature
        self._port, self._journal, self._spool = port, journal, spool
        self._emit, self._clock = emit, clock
        self._initial, self._aggregate, self._screen = initial, aggregate, screen
        pipeline = lock.plan.compression_pipeline
        self._updates = update_signature(self.signature)
        self._uplink = Pipeline(pipeline.uplink)
        self._chains = self._uplink.chains(self._updates)
        self.run = journal.fact("run") or ""
        self._round, self._ordinal = 1, 0
        downlink = Pipeline(pipeline.downlink, down=True)
        self._offers = Offers(spool, travelling(self.signature), downlink)
        self._frozen: Tensors = {}
        self._lasted_s = float(journal.fact(_UP) or 0)
        self.share = 1.0
        """Of how many of the round's sites the last `merge` was, in (0, 1]."""

    # -- asking --------------------------------------------------------------------------------

    def ask(
        self,
        task: str,
        model: Tensors,
        *,
        cohort: Sequence[str] | None = None,
        settings: Mapping[str, Json] | None = None,
        entries: Signature = (),
        exact: bool = False,
        wanted: int = 0,
    ) -> tuple[Answer, ...]:
        """Give a task on `model` to a cohort (default: all) and wait until the ask is closed.

        `entries`: the tensors that a reply has; none: numbers only. `exact`: the sites get the
        model as it is, whatever the plan's downlink loses. `wanted`: the first so many replies are
        enough; 0: everybody's are wanted.
        Returns: the accepted replies, sorted by collaborator.
        Raises: OpenFedError F01: fewer replies than the plan's quorum. F02: the journal holds
        another ask at this place, so this flow is not the one that the run began with. TimeOver:
        the plan's `stop.after` has passed.
        """
        stream = self.stream(
            task, model, cohort=cohort, settings=settings, entries=entries, exact=exact,
            wanted=wanted,
        )  # fmt: skip
        return tuple(sorted(stream, key=lambda answer: answer.collaborator))

    def stream(
        self,
        task: str,
        model: Tensors,
        *,
        cohort: Sequence[str] | None = None,
        settings: Mapping[str, Json] | None = None,
        entries: Signature = (),
        exact: bool = False,
        wanted: int = 0,
    ) -> Iterator[Answer]:
        """Like `ask`, but gives each reply as soon as it is accepted; the order is journaled."""
        names = tuple(sorted(self.roster if cohort is None else cohort))
        payload = self._payload(model, exact)
        row, ask = self._open(task, payload, names, dict(settings or {}), entries, wanted)
        seen = 0
        while True:
            for reply in row.replies:
                if not reply.code:
                    yield self._answer(reply.collaborator, reply.digest, reply.size)
            seen += len(row.replies)
            if row.met is not None:
                break
            found = self._port.wait(row.id, seen, self._left_s())
            if found is None:
                raise self._over()
            row = found
        self._lasts()
        if not row.met:
            whole = self._journal.ask(row.id)
            raise OpenFedError("F01", _shortfall(whole or row, ask))

    def reduce(
        self,
        task: str,
        model: Tensors,
        *,
        settings: Mapping[str, Json] | None = None,
        state: State | None = None,
    ) -> Tensors:
        """Ask the round's cohort for updates of `model` and make one of them (`merge`); with what
        came too late for the round before, where the plan keeps that."""
        cohort = self.cohort()
        wanted = self.plan.cohort.size(len(self.roster))
        answers = self.ask(
            task, model, cohort=cohort, settings=settings, entries=self._updates, wanted=wanted
        )
        self.report(self._round - 1, model, answers)
        return self.merge((*answers, *self._late()), state)

    def added(
        self, task: str, model: Tensors, entries: Signature, cohort: Sequence[str]
    ) -> Tensors:
        """Ask a cohort for sums at `model`, which each gets exactly, and add them in name order."""
        answers = self.ask(task, model, cohort=cohort, entries=entries, exact=True)
        self.report(self._round - 1, model, answers)
        return self._reduced([(answer, 1.0) for answer in answers], entries, added)

    def _late(self) -> Iterator[Answer]:
        """The updates of the round before that came after it, in name order."""
        if self.plan.cohort.late != "next_round":
            return
        self._port.settle(self._round)
        before = (row for row in self._journal.asks(self._round - 1) if row.round < self._round)
        found = sorted((r.collaborator, r.digest, r.size) for row in before for r in row.kept)
        kept: Any = self._journal.count_late(self._round, [list(each) for each in found])
        for name, blob, size in kept:
            yield self._answer(name, blob, size)

    def merge(self, answers: Sequence[Answer], state: State | None = None) -> Tensors:
        """The plan's aggregate of the answers' updates (see `openfed.strategy.reduce`). What a
        screen remembers of earlier rounds is in the flow's `state`, and is changed there."""
        rule = self.plan.weights
        self.share = min(1.0, len(answers) / len(self.roster))  # late ones are of others' rounds
        weighted = [
            (each, weight_of(each.numbers["n"][0], rule.name, rule.settings)) for each in answers
        ]
        screened = partial(self._screened, {} if state is None else state)
        return self._reduced(weighted, self._updates, self._aggregate, screened)

    def _screened(self, state: State, updates: Sequence[Weighted]) -> Sequence[Weighted]:
        if self._screen is None:
            return updates
        memory = state.get(_MEMORY, {})
        state[_MEMORY], kept = self._screen(memory, updates, self._updates)
        return kept

    def _reduced(
        self,
        weighted: Sequence[tuple[Answer, float]],
        entries: Signature,
        rule: Rule,
        screened: Callable[[Sequence[Weighted]], Sequence[Weighted]] = list,
    ) -> Tensors:
        with ExitStack() as stack:
            updates = [
                Weighted(stack.enter_context(self._packet(each.digest, each.collaborator)), weight)
                for each, weight in weighted
            ]
            allocate = partial(scratch, self._spool.growing)
            return reduce_updates(screened(updates), entries, rule, allocate)

    def _packet(self, digest: str, collaborator: str) -> PacketFile:
        """One that has been accepted, and was bounded then."""
        return self._spool.packet(digest, collaborator, limit=WHOLE, allowed=self._chains)

    @property
    def roster(self) -> tuple[str, ...]:
        """Who takes part in this round, sorted: whom the plan names; or whoever is here when the
        round begins, which is journaled."""
        if self.plan.named:
            return tuple(sorted(self.plan.named))
        key = f"{_SITES}{self._round:08d}"
        for _, names in self._journal.notes(key):
            return tuple(names)
        here = list(self._port.present(self.plan.fewest, self._left_s()))
        if not here:
            raise self._over()
        self._journal.note(key, here)
        return tuple(here)

    def cohort(self) -> tuple[str, ...]:
        """Who is asked to train this round: the plan's share of the roster, and those that it asks
        in addition, drawn from the plan's seed."""
        roster = self.roster
        count = self.plan.cohort.asked(len(roster))
        chosen = self.rng("cohort").choice(len(roster), size=count, replace=False)
        return tuple(roster[index] for index in sorted(chosen))

    def _open(
        self, task: str, model: Payload, cohort: tuple[str, ...], settings: dict[str, Json],
        entries: Signature, wanted: int,
    ) -> tuple[AskRow, Ask]:  # fmt: skip
        payloads = [model]
        if self._frozen:
            payloads.append(self._offers.exact("frozen", self._frozen))
        id = _ask_id(self.run, self._round, self._ordinal, task, settings, cohort, payloads)
        row = self._journal.ask_at(self._round, self._ordinal)
        asking = self._asking(id, cohort, wanted, keeps_late=bool(entries))
        if row is None:
            told: dict[str, Json] = {"cohort": cohort, "quorum": asking.quorum}
            told["payloads"] = {each.name: each.digest for each in payloads}
            self._journal.open_ask(id, self._round, self._ordinal, task, told)
            row = self._journal.ask(id)
            assert row is not None
        elif row.id != id:
            place = f"round {self._round}, ask {self._ordinal}"
            raise OpenFedError("F02", f"{place}: the journal holds another ask ({row.task}) there")
        self._ordinal += 1
        ask = replayed(row, asking)
        if row.met is None:
            fields = {"round": self._round_shown(), "task": task, "cohort": list(cohort)}
            self._emit("ask.opened", fields)
            limit = packet_limit(entries, self._uplink.chains(entries))
            assignment = Assignment(
                id, task, self._round, settings, tuple(payloads), bool(entries), limit
            )
            self._port.open(ask, assignment, entries)
        return row, ask

    def _asking(self, id: str, cohort: tuple[str, ...], wanted: int, *, keeps_late: bool) -> Ask:
        """The ask as the plan has it, before anything has happened."""
        policy, enough = self.plan.cohort, wanted or len(cohort)
        quorum = enough if policy.quorum == "all" else min(int(policy.quorum), enough)
        keeps = keeps_late and policy.late == "next_round"
        return Ask(id, cohort, quorum, policy.deadline, wanted, policy.grace, keeps)

    def _left_s(self) -> float | None:
        """Seconds until the plan's `stop.after`; None: it has none."""
        after = self.plan.stop.after if self.plan.stop else None
        return None if after is None else max(0.0, after - self._up_s())

    def _up_s(self) -> float:
        return self._lasted_s + self._port.up_s()

    def _lasts(self) -> None:
        """Make durable how long the run has been up, if that matters."""
        if self._left_s() is not None:
            self._journal.set_facts({_UP: repr(self._up_s())})

    def _over(self) -> TimeOver:
        self._lasts()
        after = self.plan.stop.after if self.plan.stop else None
        message = f"{after:g}s of stop.after are over, and round {self._round_shown()} is not"
        return TimeOver("F05", message)

    def _payload(self, model: Tensors, exact: bool) -> Payload:
        if exact:
            return self._offers.exact("model", model)
        return self._offers.model(model, derive(self.plan.seed, self._round, "downlink"))

    def _answer(self, collaborator: str, digest: str, size: int) -> Answer:
        with self._packet(digest, collaborator) as packet:
            return Answer(collaborator, digest, size, packet.numbers)

    # -- rounds --------------------------------------------------------------------------------

    def rounds(self, state: State) -> Iterator[int]:
        """The plan's rounds, from the first that the journal has not committed.

        `state` is filled from the last commit before the first turn, changed by the flow in
        place, and committed at the end of each turn. After the loop it is the final state, also
        when no round was left to run.
        """
        turn = self._journal.turn()
        if turn is None:
            self._commit(0, state)
            turn = Turn(0, {})
        else:
            state.clear()
            self._restore(turn.state, state)
        for r in range(turn.round + 1, self.plan.rounds + 1):
            self._round, self._ordinal = r, 0
            began = self._clock()
            self._emit("round.started", {"round": r})
            yield r
            self._commit(r, state)
            self._ended(state, began)
        self._round, self._ordinal = self.plan.rounds + 1, 0

    def _commit(self, round: int, state: State) -> None:
        encoded = {name: self._encode(name, value) for name, value in state.items()}
        if self._offers.decoded:
            encoded[DECODED] = {"frame": self._offers.decoded}
        self._journal.commit_turn(Turn(round, encoded), self._clock())
        self._spool.keep_only(self._needed(round, encoded))
        for name, value in encoded.items():
            if name in state and "frame" in value:  # from now on it lies in its file
                state[name] = self._load(name, str(value["frame"]))

    def _encode(self, name: str, value: Any) -> Mapping[str, Json]:
        if isinstance(value, Mapping) and all(isinstance(x, np.ndarray) for x in value.values()):
            for entry, x in value.items():
                if not is_finite(x):
                    message = f"{name} after round {self._round_shown()}: {entry} is not finite"
                    raise OpenFedError("F04", message)
            return {"frame": self._offers.store(name, value)[0]}
        return {"value": value}

    def _restore(self, encoded: Mapping[str, Any], state: State) -> None:
        """Fill `state`, and what the handle itself carries from round to round."""
        self._offers.decoded = encoded.get(DECODED, {}).get("frame", "")
        for name, value in encoded.items():
            if name != DECODED:
                frame = value.get("frame")
                state[name] = self._load(name, frame) if frame else value["value"]

    def _load(self, name: str, digest: str) -> Tensors:
        tensors = self._spool.mapped(digest)
        self._offers.kept(name, tensors, digest, self._spool.size(digest))
        return tensors

    def _needed(self, round: int, encoded: Mapping[str, Any]) -> set[str]:
        """The blobs that this state, the best model and the plan's retention still need."""
        needed = frames(encoded)
        best = self.best()
        if best:
            needed.add(best["blob"])
        if self._frozen:
            needed.add(self._offers.store("frozen", self._frozen)[0])
        kept = self.plan.retention.updates
        if isinstance(kept, str):
            first = 1 if kept == "all" else round + 1
        else:
            first = round + 1 - kept.rounds
        for row in self._journal.asks(since=min(first, round)):
            replies = row.replies if row.round >= first else row.kept  # these count next
            needed |= {blob_name(r.digest, r.collaborator) for r in replies if r.digest}
        return needed

    def _ended(self, state: State, began: float) -> None:
        fields: dict[str, Any] = {"round": self._round, "seconds": self._clock() - began}
        if "model" in state:
            fields["digest"] = self.model_digest(state["model"])
        self._emit("round.ended", fields)

    def _round_shown(self) -> int:
        return min(self._round, self.plan.rounds)

    @property
    def begun(self) -> bool:
        """Whether an earlier life of the aggregator has committed anything."""
        return self._journal.turn() is not None

    def sites(self) -> dict[str, Any]:
        """What each site told of itself: versions, isolation level."""
        came = {name for _, names in self._journal.notes(_SITES) for name in names}
        names = sorted(came | set(self.plan.named))
        told = {name: self._journal.fact(f"site {name}") for name in names}
        return {name: json.loads(text) for name, text in told.items() if text}

    def remember(self, facts: Mapping[str, str]) -> None:
        """Add to what the journal knows of the run."""
        self._journal.set_facts(facts)

    # -- models --------------------------------------------------------------------------------

    def begin(self) -> Tensors:
        """The initial model, without its frozen entries, which every site fetches once."""
        model = self._initial()
        frozen = {spec.name for spec in self.signature if spec.kind is Kind.FROZEN}
        self._frozen = {name: x for name, x in model.items() if name in frozen}
        if self._frozen:  # from here on they lie in the run's own file
            self._frozen = self._load("frozen", self._offers.store("frozen", self._frozen)[0])
        return {name: x for name, x in model.items() if name not in frozen}

    def whole(self, model: Tensors) -> Tensors:
        """The model of record: what travels and what is frozen."""
        return {**model, **self._frozen}

    def model_digest(self, model: Tensors) -> str:
        """Of the whole model."""
        if not self._frozen:
            return self._offers.store("model", model)[0]
        return digest(Record(self.whole(model)))

    def parameters(self, tensors: Tensors) -> Tensors:
        """The floating parameters and control entries among `tensors`: all that a strategy may
        see."""
        seen = (Kind.PARAMETER, Kind.CONTROL)
        names = {spec.name for spec in self.signature if spec.kind in seen}
        return {name: x for name, x in tensors.items() if name in names}

    # -- reports -------------------------------------------------------------------------------

    @property
    def lossy(self) -> bool:
        """Whether the sites work on something else than the model of record."""
        return self._offers.lossy

    @property
    def scored(self) -> str:
        """What the scores that choose the best model are called: of what the sites have."""
        return scores.DECODED if self.lossy else "validate"

    def report(
        self, k: int, model: Tensors, answers: Sequence[Answer], *, exact: bool = False
    ) -> None:
        """Publish the answers' metrics of model `k`, and remember the best model by them."""
        key = f"metrics/{self._round:08d}/{self._ordinal:04d}"
        told = [(a.collaborator, a.numbers) for a in answers]
        rows = scores.rows(self._round_shown(), k, told, decoded=self.lossy and not exact)
        known = bool(self._journal.notes(key))
        with self._journal.transaction():
            self._journal.note(key, rows)
            found = self._improve(k, model, rows)
        if not known:
            for row in rows:
                self._emit("metric", row)
            if found:
                self._emit("model.best", found)

    def _improve(self, k: int, model: Tensors, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
        wanted = self.plan.best
        value = scores.aggregate(rows, self.scored, wanted.metric) if wanted else None
        if wanted is None or value is None:
            return None
        best = self.best()
        if best is not None and not scores.better(value, best["value"], wanted.mode):
            return None
        blob, _ = self._offers.store("model", model)
        found = {"model": k, "metric": wanted.metric, "value": value, "blob": blob}
        self._journal.set_facts({"best": json.dumps(found)})
        return {key: found[key] for key in ("model", "metric", "value")}

    def best(self) -> dict[str, Any] | None:
        """{model, metric, value, blob} of the best validated model so far."""
        text = self._journal.fact("best")
        return json.loads(text) if text else None

    def best_model(self) -> tuple[int, Tensors] | None:
        """k and the whole model of the best validated one so far."""
        best = self.best()
        return (best["model"], self.whole(self._spool.mapped(best["blob"]))) if best else None

    def last_model(self) -> tuple[int, Tensors] | None:
        """k and the whole model after the last committed round; None before the first."""
        turn = self._journal.turn()
        if turn is None or turn.round == 0 or "model" not in turn.state:
            return None
        return turn.round, self.whole(self._spool.mapped(turn.state["model"]["frame"]))

    def stopped(self) -> str | None:
        """Why training is over by the plan's `stop` rule; None while it is not."""
        rule = self.plan.stop
        if rule is None:
            return None
        reason = scores.stops(rule, self._history(rule.metric)) if rule.metric else ""
        if not reason and self._left_s() == 0:
            reason = f"{rule.after:g}s of stop.after are over"
        told = self._journal.note(f"stopped/{self._round:08d}", reason)
        return f"stopped early: {told}" if told else None

    def _history(self, metric: str) -> list[float]:
        """The aggregated scores by this metric, of one model after the other."""
        scored = partial(scores.aggregate, task=self.scored, metric=metric)
        found = (scored(rows) for _, rows in self._journal.notes("metrics/"))
        return [value for value in found if value is not None]

    # -- time and randomness -------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the epoch; the same again when the flow is replayed."""
        key = f"now/{self._round}/{self._ordinal}"
        value = self._journal.note(key, self._clock())
        assert isinstance(value, float)
        return value

    def rng(self, *purpose: str | int) -> np.random.Generator:
        """A generator that depends on the plan's seed, the round and the purpose, nothing else."""
        return np.random.default_rng(derive(self.plan.seed, self._round, *purpose))


def replayed(row: AskRow, ask: Ask) -> Ask:
    """The ask as the journal's events made it of `ask`, to which nothing had happened."""
    ask = replace(ask, elapsed_s=row.elapsed_s)
    for reply in row.counted:
        event: Event = Replied(reply.collaborator, reply.digest)
        if reply.code:
            event = Failed(reply.collaborator, reply.code)
        ask, _ = step(ask, event)
    return ask


def _ask_id(
    run: str, round: int, ordinal: int, task: str, settings: Mapping[str, Json],
    cohort: tuple[str, ...], payloads: Sequence[Payload],
) -> str:  # fmt: skip
    parts = [run, round, ordinal, task, settings, cohort, [p.digest for p in payloads]]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _shortfall(row: AskRow, ask: Ask) -> str:
    accepted = sum(1 for reply in row.replies if not reply.code)
    failed = [f"{r.collaborator}: {r.code} {r.message}" for r in row.replies if r.code]
    answered = {reply.collaborator for reply in row.replies}
    silent = [f"{name}: no reply by then" for name in ask.cohort if name not in answered]
    who = "; ".join(failed + silent)
    return (
        f"{row.task} in round {row.round}: expected replies of {ask.quorum} of "
        f"{len(ask.cohort)} collaborators, got {accepted}: {who}"
    )
