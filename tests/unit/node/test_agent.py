"""The agent against a scripted aggregator: what it sends, keeps, repeats and refuses."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from openfed.errors import PolicyError, TransportError, WireError
from openfed.node.agent import Agent
from openfed.node.trainer import DirectTrainer
from openfed.store.local import LocalStore
from openfed.tensors.frame import blocks, unpack
from openfed.tensors.record import Record
from openfed.wire.messages import (
    Assignment,
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
        self.stamp = Stamp("lab", "r1", here.lock.digest, "op")
        self.orders = asyncio.Queue()
        self.pushed, self.reports, self.pulled = [], asyncio.Queue(), []
        self.verdict = Ruling.ACCEPTED
        self.hold = asyncio.Event()
        self.hold.set()

    def assignment(self, ask="ask1", task="train", round=1):
        payloads = tuple(
            Payload(name, *self.spool.put(blocks(Record(tensors))))
            for name, tensors in (("model", MOVING), ("frozen", FIXED))
        )
        settings = {"tuned": False} if task == "train" else {}
        return Assignment(ask, task, round, settings, payloads, task == "train", 1 << 20)

    def order(self, assignment=None, cancel=(), state=RunState.RUNNING):
        self.orders.put_nowait(Orders(self.stamp, state, "", 60.0, assignment, cancel))

    async def hello(self, hello):
        return Welcome(self.stamp, RunState.RUNNING, 60.0)

    async def next(self, asking):
        return await self.orders.get()

    async def pull(self, pull):
        self.pulled.append((pull.digest, pull.offset))
        for block in self.spool.read(pull.digest, pull.offset, 7):
            yield block

    async def push(self, push, blocks):
        self.pushed.append(b"".join([bytes(block) async for block in blocks(0)]))

    async def report(self, report):
        self.reports.put_nowait(report)
        await self.hold.wait()
        return Verdict(self.stamp, self.verdict)

    async def close(self): ...


@pytest.fixture
def play(lab, tmp_path):
    """Runs `await body(script, start)`; `start()` is an agent's life as a task."""

    def run(body, toy=None):
        async def main():
            here = lab({"one": toy or lab.toy(1.0, 10), "two": None})
            script = Script(here, tmp_path)

            def start():
                trainer = DirectTrainer(here.toys["one"])
                folder = lambda run: tmp_path / "mine" / run  # noqa: E731
                agent = Agent("one", here.lock, script, trainer, folder, lambda text: None)
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
        record = unpack(script.pushed[0], limit=1 << 20)
        assert record.tensors["w"].tolist() == [1.0, -1.0, np.float32(3.1) - np.float32(3)]
        assert record.tensors["bn.count"] == 10
        assert "fixed" not in record.tensors and "seen" not in record.tensors
        assert record.numbers["n"] == (10.0,)
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
        assert here.state() is not None
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
        assert here.owed("ask1").ruling == "accepted" and here.state() is not None
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
        assert here.state() is None
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
        async def broken(push, blocks):
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
