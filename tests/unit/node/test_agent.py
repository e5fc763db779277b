"""The agent against a scripted aggregator: what it sends, keeps, repeats and refuses."""

import asyncio
import contextlib
import sqlite3
import threading
from dataclasses import replace

import numpy as np
import pytest
from blake3 import blake3

from openfed.codec.chain import make_chain
from openfed.codec.packet import packet_blocks
from openfed.codec.pipeline import Pipeline
from openfed.errors import PolicyError, TransportError, WireError
from openfed.flow.offers import Offers
from openfed.node.agent import WAIT_S, Agent
from openfed.node.bell import Bell
from openfed.node.lease import Lease
from openfed.node.trainer import DirectTrainer
from openfed.plan.site import Site
from openfed.store.local import RESIDUAL, TASK, LocalStore
from openfed.store.packets import open_packet
from openfed.tensors.frame import Held, blocks
from openfed.tensors.record import Record
from openfed.tensors.update import travelling
from openfed.wire.messages import (
    Assignment,
    Blob,
    Orders,
    Payload,
    Ruling,
    RunState,
    Stamp,
    Verdict,
    Welcome,
)

MOVING = {
    "bn.count": np.array(0, np.int64),
    "bn.mean": np.zeros(2, np.float32),
    "w": np.float32([1, 2, 3]),
}
FIXED = {"fixed": np.float32([7, 8])}


class Script:
    """A link whose aggregator answers as the test says."""

    def __init__(self, here, tmp_path):
        self.spool = LocalStore(tmp_path / "theirs").spool
        self.here, self.folder = here, tmp_path
        self.stamp = Stamp("lab", "r1", here.lock.digest, "op")
        self.orders = asyncio.Queue()
        self.pushes, self.pushed, self.reports, self.pulled = [], [], asyncio.Queue(), []
        self.asked, self.said = [], []
        self.verdict = Ruling.ACCEPTED
        self.hold = asyncio.Event()
        self.hold.set()

    def assignment(self, ask="ask1", task="train", round=1):
        payloads = tuple(self.whole(*each) for each in (("model", MOVING), ("frozen", FIXED)))
        settings = {"tuned": False} if task == "train" else {}
        return Assignment(ask, task, round, settings, payloads, task == "train", 1 << 20)

    def whole(self, name, tensors):
        """A payload that is pulled as its frame."""
        stored = self.spool.put(blocks(Record(tensors)))
        return Payload(name, *stored, (Blob(*stored),))

    def reply(self, number=0):
        """(head, update) of what was pushed."""
        path = self.folder / "pushed"
        path.write_bytes(self.pushed[number])
        return self.here.opened(path)

    def order(self, assignment=None, cancel=(), state=RunState.RUNNING):
        self.orders.put_nowait(Orders(self.stamp, state, "", 60.0, assignment, cancel))

    async def hello(self, hello):
        return Welcome(self.stamp, RunState.RUNNING, 60.0)

    async def next(self, asking):
        self.asked.append(asking)
        return await self.orders.get()

    async def pull(self, pull):
        self.pulled.append((pull.digest, pull.offset))
        for block in self.spool.read(pull.digest, pull.offset, 7):
            yield block

    async def push(self, push, blocks, report):
        self.pushes.append(push)
        self.pushed.append(b"".join([bytes(block) async for block in blocks(0)]))
        return await self.report(await report())

    async def report(self, report):
        self.reports.put_nowait(report)
        await self.hold.wait()
        return Verdict(self.stamp, self.verdict)

    async def close(self): ...


@pytest.fixture
def play(lab, tmp_path):
    """Runs `await body(script, start)`; `start()` is an agent's life as a task."""

    def run(body, toy=None, more="", site=None, wrap=lambda trainer: trainer, time=None):
        async def main():
            here = lab({"one": toy or lab.toy(1.0, 10), "two": None}, more=more)
            script = Script(here, tmp_path)

            def start():
                trainer = wrap(DirectTrainer(here.toys["one"]))
                lease = time and Lease(time.clock, time.sleep)
                folder = lambda run: tmp_path / "mine" / run  # noqa: E731
                own = Site.model_validate({"name": "one", "data": 0, **site}) if site else None
                said = script.said.append
                agent = Agent(
                    "one", here.lock, script, trainer, folder, said, site=own, lease=lease
                )
                return asyncio.create_task(agent.run())

            script.toy = here.toys["one"]
            await asyncio.wait_for(body(script, start), 30)

        asyncio.run(main())

    return run


def store(tmp_path):
    return LocalStore(tmp_path / "mine" / "r1")


def test_an_update_is_the_difference_and_numbers_go_beside_it(play):
    async def body(script, start):
        life = start()
        script.order(script.assignment())
        report = await script.reports.get()
        script.order(state=RunState.COMPLETED)
        assert await life == (RunState.COMPLETED, "")
        head, update = script.reply()
        assert update["w"].tolist() == [1.0, -1.0, np.float32(3.1) - np.float32(3)]
        assert update["bn.count"] == 10
        assert sorted(update) == ["bn.count", "bn.mean", "w"]
        assert head.numbers["n"] == (10.0,)
        assert head.base == script.assignment().payloads[0].digest
        assert report.size == len(script.pushed[0])

    play(body)


def test_what_was_encoded_once_is_sent_again_unchanged_and_not_trained_again(play, tmp_path):
    async def body(script, start):
        script.hold.clear()
        life = start()
        script.order(script.assignment())
        first = await script.reports.get()
        life.cancel()  # the agent dies between its upload and the answer
        await asyncio.gather(life, return_exceptions=True)
        script.hold.set()
        script.verdict = Ruling.DUPLICATE
        again = start()
        second = await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await again
        assert script.pushed[0] == script.pushed[1]
        assert first.digest == second.digest
        assert len(script.toy.seen) == 1
        here = store(tmp_path)
        assert here.state(TASK) is not None
        here.close()

    play(body)


def test_a_cancel_that_comes_while_the_reply_is_reported_changes_nothing(play, tmp_path):
    async def body(script, start):
        script.hold.clear()
        life = start()
        script.order(script.assignment())
        await script.reports.get()
        script.order(cancel=("ask1",))
        while not script.orders.empty():
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        script.hold.set()
        script.order(script.assignment("ask2", "validate"))
        await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await life
        here = store(tmp_path)
        assert here.owed("ask1").ruling == "accepted" and here.state(TASK) is not None
        here.close()

    play(body)


def test_a_late_reply_leaves_the_local_state_as_it_was(play, tmp_path):
    async def body(script, start):
        script.verdict = Ruling.LATE
        life = start()
        for ask in ("ask1", "ask2"):
            script.order(script.assignment(ask))
            await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await life
        assert [local for *_, local in script.toy.seen] == [[], []]
        here = store(tmp_path)
        assert here.state(TASK) is None
        here.close()

    play(body)


def test_a_model_that_is_here_is_not_fetched_again(play):
    async def body(script, start):
        life = start()
        script.order(script.assignment("ask1", "validate"))
        await script.reports.get()
        script.order(script.assignment("ask2"))
        await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await life
        assert len(script.pulled) == 2  # the model and its frozen part, once each

    play(body)


@pytest.mark.parametrize("task", ["predict", "validate_tuned"])
def test_a_task_that_the_plan_does_not_have_is_not_run(play, task):
    async def body(script, start):
        life = start()
        script.order(script.assignment(task=task))
        with pytest.raises(PolicyError, match="R12"):
            await life
        assert not script.toy.seen and not script.pushed

    play(body)


def test_a_fault_of_the_link_during_work_ends_the_agent_at_once(play):
    async def body(script, start):
        async def broken(push, blocks, report):
            raise TransportError("T04", "the aggregator is gone", permanent=True)

        script.push = broken
        life = start()
        script.order(script.assignment())
        with pytest.raises(TransportError, match="gone"):
            await life

    play(body)


def test_an_entry_that_the_plan_keeps_local_never_leaves_the_site(lab, tmp_path):
    here = lab({"one": lab.toy(1.0, 10)}, rounds=1, more='scope: [{"w": local}]')
    ended = here.run()
    assert ended.state == "failed" and "one: K09 w" in ended.reason
    sent = [path.read_bytes() for path in (here.root / "runs" / "r1" / "blobs").glob("one.*")]
    assert not any(b'"w"' in frame for frame in sent)


def test_a_reply_that_was_late_is_made_anew_if_it_is_asked_for_again(play):
    async def body(script, start):
        script.verdict = Ruling.LATE
        life = start()
        script.order(script.assignment())
        await script.reports.get()
        script.order(script.assignment("ask2", "validate"))
        await script.reports.get()
        script.verdict = Ruling.ACCEPTED
        script.order(script.assignment())
        report = await script.reports.get()
        assert report.failure is None
        script.order(state=RunState.COMPLETED)
        await life
        assert [name for name, *_ in script.toy.seen] == ["train", "validate", "train"]

    play(body)


def test_a_ruling_that_was_missed_is_asked_for_before_new_work(play, tmp_path):
    async def body(script, start):
        script.hold.clear()
        life = start()
        script.order(script.assignment())
        await script.reports.get()
        life.cancel()  # accepted over there; the agent dies before it knows
        await asyncio.gather(life, return_exceptions=True)
        script.hold.set()
        script.verdict = Ruling.DUPLICATE
        again = start()
        script.order(script.assignment("ask2"))
        await script.reports.get()
        await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await again
        assert [local for *_, local in script.toy.seen] == [[], ["seen"]]

    play(body)


def test_other_settings_than_the_plans_are_refused(play):
    async def body(script, start):
        life = start()
        script.order(replace(script.assignment(), settings={"tuned": False, "epochs": 1000}))
        with pytest.raises(PolicyError, match="R12"):
            await life
        assert not script.toy.seen

    play(body)


def test_a_run_s_id_is_no_path(play, tmp_path):
    async def body(script, start):
        script.stamp = replace(script.stamp, run=str(tmp_path / "evil"))
        with pytest.raises(WireError, match="W10"):
            await start()
        assert not (tmp_path / "evil").exists()

    play(body)


def test_an_ask_that_is_over_before_its_model_was_fetched_is_dropped(play):
    async def body(script, start):
        over = asyncio.Event()

        async def refused(pull):
            over.set()
            raise PolicyError("R05", "no open assignment of one names this blob")
            yield b""

        script.pull, pull = refused, script.pull
        life = start()
        script.order(script.assignment())
        await over.wait()
        script.pull = pull
        script.order(script.assignment("ask2", "validate"))
        assert (await script.reports.get()).ask == "ask2"
        script.order(state=RunState.COMPLETED)
        assert await life == (RunState.COMPLETED, "")

    play(body)


# -- an upload that is cut -------------------------------------------------------------------------


async def committed(tmp_path, ask="ask1"):
    """Waits until the agent owes a reply to the ask."""
    path = tmp_path / "mine" / "r1" / "local.sqlite"
    while True:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as db:
            if db.execute("select 1 from replies where ask = ?", (ask,)).fetchone():
                return
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("cut", [0, 1, 100])
def test_an_agent_that_dies_while_it_uploads_goes_on_with_the_same_bytes(play, tmp_path, cut):
    async def body(script, start):
        pushes, got = [], bytearray()

        async def broken(push, blocks, report):
            pushes.append(push)
            got.extend(b"".join([bytes(block) async for block in blocks(0)])[:cut])
            await asyncio.Event().wait()

        async def resumed(push, blocks, report):
            pushes.append(push)
            got.extend(b"".join([bytes(block) async for block in blocks(len(got))]))
            return await script.report(await report())

        script.push = broken
        life = start()
        script.order(script.assignment())
        await committed(tmp_path)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        script.push = resumed
        again = start()
        report = await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await again
        assert blake3(got).hexdigest() == report.digest and len(got) == report.size
        first, second = pushes
        assert first.upload == second.upload and first.digest == "" and second.digest
        assert len(script.toy.seen) == 1

    play(body)


def test_an_agent_that_dies_before_its_reply_is_encoded_makes_another(play, tmp_path):
    async def body(script, start):
        begun = asyncio.Event()

        def waits(toy, task):
            script.loop.call_soon_threadsafe(begun.set)
            script.held.wait(20)

        script.loop, script.held = asyncio.get_running_loop(), threading.Event()
        script.toy.breaks = waits
        life = start()
        script.order(script.assignment())
        await begun.wait()
        life.cancel()
        script.held.set()
        await asyncio.gather(life, return_exceptions=True)
        assert not script.pushes
        again = start()
        script.order(script.assignment())
        await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await again
        assert len(script.toy.seen) == 2 and len(script.pushes) == 1

    play(body)


def test_each_encoding_has_a_name_of_its_own(play):
    async def body(script, start):
        script.verdict = Ruling.LATE
        life = start()
        for _ in range(2):
            script.order(script.assignment())
            await script.reports.get()
            script.order(script.assignment("ask2", "validate"))
            await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await life
        assert len({push.upload for push in script.pushes}) == len(script.pushes) == 4

    play(body)


# -- feedback --------------------------------------------------------------------------------------

FEEDBACK = "compression_pipeline: {uplink: {feedback: true, codecs: [{topk: {fraction: 0.3}}]}}"


@pytest.mark.parametrize("ruling", [Ruling.LATE, Ruling.REFUSED])
def test_a_residual_is_adopted_with_an_accepted_update_only(play, tmp_path, ruling):
    """Of three entries one is sent: the rest is added to the next update."""
    step = np.float32([1, -1, 0.1])
    bent = (MOVING["w"] + step) - MOVING["w"]

    async def body(script, start):
        life = start()
        rulings = [Ruling.ACCEPTED, ruling, ruling, Ruling.ACCEPTED, Ruling.DUPLICATE]
        for number, each in enumerate(rulings):
            script.verdict = each
            script.order(script.assignment(f"ask{number}"))
            await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await life
        residual, owed = np.zeros(3, np.float32), []
        for number, each in enumerate(rulings):
            owed.append(bent + residual)
            _, sent = script.reply(number)
            (at,) = np.flatnonzero(sent["w"])
            assert sent["w"][at] == owed[-1][at]
            assert np.abs(owed[-1]).max() == np.abs(owed[-1][at])
            assert sent["bn.mean"].tolist() == [1, 1]  # buffers are sent as they are
            if each in (Ruling.ACCEPTED, Ruling.DUPLICATE):
                residual = owed[-1] - sent["w"]
        assert owed[1].tobytes() == owed[2].tobytes() == owed[3].tobytes()
        assert owed[4].tobytes() != owed[3].tobytes()
        here = store(tmp_path)
        with here.spool.open(here.state(RESIDUAL), limit=1 << 20) as frame:
            kept = frame.record().tensors
        here.close()
        assert list(kept) == ["w"] and kept["w"].tobytes() == residual.tobytes()

    play(body, more=FEEDBACK)


# -- what the site itself has set ------------------------------------------------------------------


def test_nothing_of_the_update_passes_the_sites_filters_by(play):
    async def body(script, start):
        life = start()
        script.order(script.assignment())
        await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await life
        head, update = script.reply()
        assert np.linalg.norm(update["w"]) == pytest.approx(0.5, rel=1e-5)
        assert update["bn.count"] == 0 and not update["bn.mean"].any()
        assert not [name for name in head.numbers if name.startswith("metrics/")]
        assert head.numbers["n"] == (10.0,)

    filters = [{"drop": ["bn.*"]}, {"clip_norm": 0.5}]
    play(body, site={"filters": filters, "limits": {"metrics": []}})


def test_what_is_clipped_together_with_a_residual_is_within_the_norm(play):
    async def body(script, start):
        life = start()
        for number in range(4):
            script.order(script.assignment(f"ask{number}"))
            await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await life
        norms = [np.linalg.norm(script.reply(number)[1]["w"]) for number in range(4)]
        assert min(norms) > 0 and max(norms) <= 0.5

    play(body, more=FEEDBACK, site={"filters": [{"clip_norm": 0.5}]})


NOISY = {"filters": [{"noise": {"std": 1.0}}]}


def test_noise_is_drawn_once_and_no_byte_leaves_before_it_is_committed(play, tmp_path):
    async def body(script, start):
        seen, sent = [], asyncio.Event()
        push = script.push

        async def looks(given, blocks, report):
            with contextlib.closing(sqlite3.connect(tmp_path / "mine/r1/local.sqlite")) as db:
                seen.append(db.execute("select digest from replies").fetchall())
            sent.set()
            return await push(given, blocks, report)

        script.hold.clear()
        script.push = looks
        life = start()
        script.order(script.assignment())
        first = await script.reports.get()
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        script.hold.set()
        script.verdict = Ruling.LATE
        again = start()
        second = await script.reports.get()
        script.order(script.assignment("ask2", "validate"))
        await script.reports.get()
        script.order(script.assignment())  # ruled on: not made a second time, with other noise
        refused = await script.reports.get()
        script.order(state=RunState.COMPLETED)
        await again
        assert seen[0] == [(first.digest,)]
        assert script.pushed[0] == script.pushed[1] and first.digest == second.digest
        assert refused.failure.code == "K32"
        assert [name for name, *_ in script.toy.seen] == ["train", "validate"]

    play(body, site=NOISY)


def test_a_task_that_takes_longer_than_the_site_allows_is_stopped(play):
    held = threading.Event()

    async def body(script, start):
        script.toy.breaks = lambda toy, task: held.wait(20)
        try:
            life = start()
            script.order(script.assignment())
            report = await script.reports.get()
            assert report.failure.code == "K30" and not script.pushes
            held.set()
            script.order(script.assignment("ask2", "validate"))
            assert (await script.reports.get()).failure is None
            script.order(state=RunState.COMPLETED)
            await life
        finally:
            held.set()

    play(body, site={"limits": {"seconds": "0.2s"}})


def test_a_training_with_too_few_samples_leaves_nothing(play):
    async def body(script, start):
        life = start()
        script.order(script.assignment())
        report = await script.reports.get()
        assert report.failure.code == "K31" and "10" not in report.failure.message
        assert not report.failure.traceback and not script.pushes
        script.order(script.assignment("ask2", "validate"))
        assert (await script.reports.get()).failure is None
        script.order(state=RunState.COMPLETED)
        await life

    play(body, site={"limits": {"samples": 11}})


def test_a_site_leaves_the_run_before_it_has_sent_too_much_also_when_it_is_started_again(play):
    async def body(script, start):
        life = start()
        script.order(script.assignment())
        await script.reports.get()
        assert len(script.pushed[0]) < 700 < 2 * len(script.pushed[0])
        script.order(script.assignment("ask2"))
        report = await script.reports.get()
        with pytest.raises(PolicyError, match="R34"):
            await life
        assert report.failure.code == "R34" and len(script.pushes) == 1
        again = start()
        script.order(script.assignment("ask3"))
        with pytest.raises(PolicyError, match="R34"):
            await again
        assert len(script.pushes) == 1

    play(body, site={"limits": {"bytes_out": "700B"}})


def test_a_site_trains_in_no_more_rounds_than_it_allows(play):
    async def body(script, start):
        life = start()
        script.order(script.assignment(round=3))
        with pytest.raises(PolicyError, match="R30"):
            await life
        assert (await script.reports.get()).failure.code == "R30"
        assert not script.toy.seen and not script.pushes

    play(body, site={"limits": {"rounds": 2}})


# -- what is pulled --------------------------------------------------------------------------------

DOWN = "compression_pipeline: {downlink: [{quantize: {bits: 8}}]}"


def models(count):
    rng = np.random.default_rng(1)
    for number in range(count):
        yield {
            "bn.count": np.array(number),
            "bn.mean": rng.normal(size=2).astype(np.float32),
            "w": rng.normal(size=3).astype(np.float32),
        }


def offers(script):
    pipeline = Pipeline(script.here.lock.plan.compression_pipeline.downlink)
    return Offers(script.spool, travelling(script.here.lock.signature), pipeline)


def on(script, payload, ask):
    """A validation of what a payload stands for."""
    asked = script.assignment(ask, "validate")
    return replace(asked, payloads=(payload, asked.payloads[1]))


def test_a_model_is_made_of_differences_where_their_base_is_here(play):
    async def body(script, start):
        given = offers(script)
        payloads = [given.model(model, seed) for seed, model in enumerate(models(3))]
        assert [len(payload.blobs) for payload in payloads] == [1, 2, 2]
        life = start()
        for number, payload in enumerate(payloads):
            script.order(on(script, payload, f"ask{number}"))
            assert (await script.reports.get()).failure is None
        script.order(state=RunState.COMPLETED)
        await life
        pulled = [digest for digest, _ in script.pulled if digest != script.pulled[1][0]]
        assert pulled == [payload.blobs[0].digest for payload in payloads]
        assert script.pulled[1][0] == script.assignment().payloads[1].digest  # the frozen part

    play(body, more=DOWN)


def test_a_model_is_pulled_whole_where_its_base_is_not_here(play):
    async def body(script, start):
        given = offers(script)
        *_, last = [given.model(model, seed) for seed, model in enumerate(models(3))]
        life = start()
        script.order(on(script, last, "ask1"))
        assert (await script.reports.get()).failure is None
        script.order(state=RunState.COMPLETED)
        await life
        assert script.pulled[0][0] == last.digest == last.blobs[1].digest

    play(body, more=DOWN)


def test_a_base_that_somebody_changed_is_dropped_and_the_model_pulled_whole(play):
    async def body(script, start):
        given = offers(script)
        first, second = [given.model(model, seed) for seed, model in enumerate(models(2))]
        life = start()
        script.order(on(script, first, "ask1"))
        assert (await script.reports.get()).failure is None
        base = script.folder / "mine" / "r1" / "blobs" / first.digest
        base.chmod(0o600)
        with base.open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
        script.order(on(script, second, "ask2"))
        assert (await script.reports.get()).failure is None
        script.order(state=RunState.COMPLETED)
        await life
        pulled = [digest for digest, _ in script.pulled]
        assert pulled[-2:] == [blob.digest for blob in second.blobs]

    play(body, more=DOWN)


def spoil(script, payload, kind):
    """A payload whose packet is not what it should be."""
    path = script.spool.path(payload.blobs[0].digest)
    with open_packet(path, limit=1 << 20, allowed=given_chains(script)) as packet:
        head, source = packet.head, packet
        if kind == "another base":
            head = replace(head, base="ab" * 32)
        if kind == "other values":
            head = replace(head, seed=0)
            source = Held(Record({s.name: np.ones(s.shape, s.dtype) for s in head.specs}))
        if kind == "an entry less":
            head = replace(head, specs=head.specs[:-1], chains=head.chains[:-1])
        if kind == "another chain":
            chain = make_chain([("bf16", {})])
            head = replace(head, chains=(*head.chains[:-1], chain))
        stored = script.spool.put(packet_blocks(head, source))
    return replace(payload, blobs=(Blob(*stored, payload.blobs[0].base),))


def given_chains(script):
    pipeline = Pipeline(script.here.lock.plan.compression_pipeline.downlink)
    return pipeline.chains(travelling(script.here.lock.signature))


SPOILT = {
    "another base": "W14",
    "an entry less": "W14",
    "another chain": "W22",
    "other values": "W05",
    "no form": "W14",
}


@pytest.mark.parametrize("kind", SPOILT)
def test_a_packet_that_is_not_the_model_ends_the_agent_before_its_task(play, kind):
    async def body(script, start):
        given = offers(script)
        first, second = [given.model(model, seed) for seed, model in enumerate(models(2))]
        life = start()
        script.order(on(script, first, "ask1"))
        await script.reports.get()
        bad = replace(second, blobs=()) if kind == "no form" else spoil(script, second, kind)
        script.order(on(script, bad, "ask2"))
        with pytest.raises(WireError, match=SPOILT[kind]):
            await life
        assert len(script.toy.seen) == 1

    play(body, more=DOWN)


def test_a_blob_that_is_larger_than_any_model_is_not_pulled(play):
    async def body(script, start):
        asked = script.assignment()
        model = asked.payloads[0]
        large = replace(model, blobs=(replace(model.blobs[0], size=1 << 40),))
        life = start()
        script.order(replace(asked, payloads=(large, asked.payloads[1])))
        with pytest.raises(PolicyError, match="R12"):
            await life
        assert not script.pulled

    play(body)


# -- the lease ---------------------------------------------------------------------------------


class Time:
    """A monotonic clock that stands still until a test lets time pass."""

    def __init__(self):
        self.now, self.moved, self.sleepers = 1000.0, Bell(), 0

    def clock(self):
        return self.now

    async def sleep(self, seconds):
        until = self.now + seconds
        while self.now < until:
            self.sleepers += 1
            try:
                await self.moved.heard()
            finally:
                self.sleepers -= 1

    async def pass_by(self, seconds):
        """And wait until whoever slept has seen it."""
        while not self.sleepers:
            await asyncio.sleep(0)
        self.now += seconds
        self.moved.ring()
        for _ in range(10):
            await asyncio.sleep(0)


class Stuck:
    """Trains for ever the first time, then like the trainer that it wraps."""

    def __init__(self, trainer):
        self.trainer, self.versions = trainer, {}
        self.begun, self.stopped = asyncio.Event(), asyncio.Event()

    async def run(self, task, inputs, limit):
        if self.begun.is_set():
            return await self.trainer.run(task, inputs, limit)
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()


@pytest.fixture
def stuck():
    made = []

    def wrap(trainer):
        made.append(Stuck(trainer))
        return made[0]

    wrap.made = made
    return wrap


def test_a_task_stops_when_nothing_was_heard_for_a_lease_and_is_computed_anew(play, stuck):
    time = Time()

    async def body(script, start):
        life = start()
        script.order(script.assignment())
        (trainer,) = stuck.made
        await trainer.begun.wait()
        await time.pass_by(59)
        assert not trainer.stopped.is_set(), "the lease is 60 seconds"
        await time.pass_by(2)
        await trainer.stopped.wait()
        while script.asked[-1].holding:
            await asyncio.sleep(0)
        assert "nothing heard from the aggregator for 60 s" in script.said[-1]
        script.order(script.assignment())  # as it does for who does not hold it
        report = await script.reports.get()
        assert report.failure is None and len(script.pushed) == 1
        script.order(state=RunState.COMPLETED)
        assert await life == (RunState.COMPLETED, "")

    play(body, wrap=stuck, time=time)


def test_an_answer_to_a_poll_and_a_block_renew_the_lease(play, stuck):
    time = Time()

    async def body(script, start):
        async def slowly(pull):
            for block in script.spool.read(pull.digest, pull.offset, 7):
                await time.pass_by(40)
                yield block

        script.pull = slowly
        life = start()
        script.order(script.assignment())
        (trainer,) = stuck.made
        await trainer.begun.wait()  # all of the model's blocks took more than a lease
        for _ in range(3):
            await time.pass_by(40)
            script.order()
            while not script.orders.empty():
                await asyncio.sleep(0)
        await time.pass_by(40)
        assert not trainer.stopped.is_set() and not any("nothing heard" in s for s in script.said)
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)

    play(body, wrap=stuck, time=time)


def test_what_is_encoded_outlives_the_lease_and_is_delivered_later(play, tmp_path):
    time = Time()

    async def body(script, start):
        script.hold.clear()
        life = start()
        script.order(script.assignment())
        await script.reports.get()
        await time.pass_by(61)
        assert "nothing heard" in script.said[-1] and "stopped" not in script.said[-1]
        script.hold.set()
        while script.asked[-1].holding:
            script.order()
            await asyncio.sleep(0.001)
        script.order(state=RunState.COMPLETED)
        await life
        assert len(script.toy.seen) == len(script.pushed) == 1
        here = store(tmp_path)
        assert here.owed("ask1").ruling == "accepted"
        here.close()

    play(body, time=time)


def test_a_poll_is_held_for_less_than_a_lease(play):
    async def body(script, start):
        life = start()
        script.orders.put_nowait(Orders(script.stamp, RunState.RUNNING, "", 6.0))
        while len(script.asked) < 2:
            await asyncio.sleep(0)
        script.order(state=RunState.COMPLETED)
        await life
        assert [asked.wait_s for asked in script.asked] == pytest.approx([24.0, 2.4])
        assert WAIT_S >= 24

    play(body)
