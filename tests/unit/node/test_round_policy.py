"""How long a round waits, for whom, and what becomes of what comes too late."""

import asyncio
import threading

import numpy as np
import pytest

from openfed.ask.machine import Replied, step
from openfed.wire.messages import RunState


def times(n):
    """So many seconds, one by one."""
    return [1] * n


async def both_are_here(here, open):
    """The clock of the ask is going."""
    for name in ("one", "two"):
        await here.hello(name)
    await here.until(lambda: open.since is not None)


async def passes(here, open, seconds):
    """Let time pass in steps, and see that it was noticed."""
    for each in seconds:
        before, here.time = open.ask, here.time + each
        await here.until(lambda before=before: open.ask is not before or open.since is None)


async def answers(here, open, name):
    """As if a reply had come; what the journal does with it is shown elsewhere."""
    async with here.aggregator._order:
        ask, effects = step(open.ask, Replied(name, "0" * 64))
        here.aggregator._adopt(open, ask, effects)


def when(here, kind, do):
    """Have `do()` called at every event of this kind."""
    emit = here.emit

    def watching(told, fields):
        emit(told, fields)
        if told == kind:
            do()

    here.emit = watching


def told(here, kind):
    return [fields for told, fields in here.events if told == kind]


def test_the_clock_of_an_ask_stands_until_a_quorum_is_here(gate):
    async def body(here):
        open = await here.ask(quorum=2, deadline_s=10.0)
        await here.hello("one")
        here.time += 1000
        await here.after(0, asyncio.ensure_future(asyncio.sleep(0)))
        assert open.since is None and not open.ask.closed
        await both_are_here(here, open)
        assert open.ask.elapsed_s == 0

    gate(body)


def test_too_few_at_the_deadline_are_waited_for_and_have_a_deadline_of_their_own(gate):
    async def body(here):
        open = await here.ask(quorum=2, deadline_s=10.0)
        await both_are_here(here, open)
        await answers(here, open, "one")
        here.aggregator._heard.pop("two")  # it has hung up
        await passes(here, open, [10])
        await here.until(lambda: open.lacks)
        (waiting,) = told(here, "ask.waiting")
        assert waiting["gone"] == ["two"]
        assert (waiting["answers"], waiting["quorum"], waiting["round"]) == (1, 2, 1)
        assert open.ask.waiting and here.journal.ask("ask1").elapsed_s == 0
        here.time += 5000
        await here.hello("two")
        await here.until(lambda: not open.ask.waiting)
        assert len(told(here, "ask.resumed")) == 1 and not open.ask.closed
        here.time += 9
        await here.until(lambda: open.ask.elapsed_s == 9)
        await answers(here, open, "two")
        assert open.ask.closed.met and open.ask.closed.accepted == ("one", "two")

    gate(body)


def test_without_a_deadline_too_people_are_told_who_is_gone(gate):
    async def body(here):
        open = await here.ask(quorum=2)
        for name in ("one", "two"):
            await here.hello(name)
        here.aggregator._heard.pop("one")
        await here.until(lambda: open.lacks)
        (waiting,) = told(here, "ask.waiting")
        assert waiting["gone"] == ["one"]
        await here.hello("one")
        await here.until(lambda: not open.lacks)
        assert len(told(here, "ask.resumed")) == 1

    gate(body)


def test_who_is_here_and_too_slow_is_not_waited_for(gate):
    async def body(here):
        open = await here.ask(quorum=2, deadline_s=10.0)
        await both_are_here(here, open)
        here.time += 5
        for name in ("one", "two"):
            await here.hello(name)
        here.time += 5
        await here.until(lambda: open.ask.closed)
        assert not open.ask.closed.met and not told(here, "ask.waiting")

    gate(body)


def test_a_grace_begins_when_the_quorum_is_there(gate):
    async def body(here):
        open = await here.ask(quorum=1, deadline_s=100.0, grace_s=5.0)
        await here.hello("one")
        await here.until(lambda: open.since is not None)
        await passes(here, open, times(20))
        await answers(here, open, "one")
        await passes(here, open, times(5))
        assert not open.ask.closed, "it is counted from the first look after the quorum"
        await passes(here, open, times(1))
        assert open.ask.closed.met and open.ask.elapsed_s == 26

    gate(body)


class Race:
    """`two` answers the training of round 1 only once `go` is called."""

    def __init__(self, lab, more, rounds=3):
        self.gone_on = threading.Event()
        self.here = lab(
            {"one": lab.toy(1.0, 10), "two": lab.toy(-0.5, 30, breaks=self.waits)},
            rounds=rounds,
            more=more,
        )

    def waits(self, toy, task):
        if (task.name, task.round) == ("train", 1):
            assert self.gone_on.wait(30)


def test_a_late_update_counts_in_the_next_round(lab):
    race = Race(lab, "cohort: {quorum: 1, grace: 1s, late: next_round}\nretention: {updates: all}")
    here = race.here
    when(here, "round.ended", race.gone_on.set)
    ended = here.run()
    assert ended.state is RunState.COMPLETED, ended.reason
    journal = here.journal()
    kept = [(row.round, r.collaborator) for row in journal.asks() for r in row.kept]
    notes = dict(journal.notes("late/"))
    journal.close()
    assert kept == [(1, "two")]
    (used,) = [int(key[-8:]) for key, rows in notes.items() if rows]
    assert used == 2
    # w[0]: one adds 1*r, two adds -0.5*r; n 10 and 30
    first = 1.0
    second = (10 * 2 + 30 * -1 + 30 * -0.5) / 70
    third = (10 * 3 + 30 * -1.5) / 40
    assert np.allclose(here.last["w"][0], 1 + first + second + third, atol=1e-6)


def test_a_late_update_is_discarded_unless_the_plan_keeps_it(lab):
    race = Race(lab, "cohort: {quorum: 1, grace: 1s}", rounds=2)
    when(race.here, "round.ended", race.gone_on.set)
    assert race.here.run().state is RunState.COMPLETED
    second = (10 * 2 + 30 * -1) / 40
    assert np.allclose(race.here.last["w"][0], 1 + 1 + second, atol=1e-6)


def test_the_first_answers_count_where_more_are_asked_than_wanted(lab):
    toys = {name: lab.toy(1.0, 10) for name in ("a", "b", "c", "d")}
    here = lab(toys, more="cohort: {count: 2, over: 1.5}")
    assert here.run().state is RunState.COMPLETED
    for opened in here.of("ask.opened"):
        assert len(opened["cohort"]) == (3 if opened["task"] == "train" else 4)
    trained = [event for event in here.of("ask.closed") if event["task"] == "train"]
    assert [len(event["accepted"]) for event in trained] == [2, 2, 2]


@pytest.mark.parametrize(
    ("stop", "trained", "why"),
    [
        ("{metric: accuracy, reaches: 0.5}", 0, "accuracy has reached 0.5"),
        ("{metric: loss, reaches: 1.0}", 0, "loss has reached 1"),
        ("{metric: accuracy, reaches: 0.51}", 3, ""),
        ("{metric: accuracy, patience: 2}", 2, "accuracy did not improve in 2 validations"),
        ("{metric: accuracy, reaches: 0.9, patience: 1}", 1, "did not improve in 1 validations"),
    ],
)
def test_a_run_stops_where_the_plan_says(lab, stop, trained, why):
    here = lab({"one": lab.toy(1.0, 10)}, more=f"stop: {stop}")
    ended = here.run()
    assert ended.state is RunState.COMPLETED and ended.summary["rounds"] == trained
    assert why in (ended.summary["reason"] or "")


def test_a_run_whose_time_is_over_ends_with_its_last_whole_round(lab):
    stuck = threading.Event()

    def breaks(toy, task):
        if (task.name, task.round) == ("train", 3):
            stuck.wait(30)

    here = lab({"one": lab.toy(1.0, 10, breaks=breaks)}, rounds=5, more="stop: {after: 3s}")
    when(here, "run.ended", stuck.set)
    ended = here.run()
    assert ended.state is RunState.COMPLETED and ended.summary["rounds"] == 2
    assert ended.reason == "stopped early: 3s of stop.after are over, and round 3 is not"
    assert ended.summary["model"]["digest"]


def test_a_run_whose_time_is_over_before_its_first_round_has_failed(lab):
    stuck = threading.Event()
    toy = lab.toy(1.0, 10, breaks=lambda toy, task: stuck.wait(30))
    here = lab({"one": toy}, more="stop: {after: 0.5s}")
    when(here, "run.ended", stuck.set)
    ended = here.run()
    assert ended.state is RunState.FAILED and ended.reason.startswith("F05  ")


def test_a_task_that_takes_longer_than_the_plan_allows_is_stopped(lab):
    stuck = threading.Event()

    def breaks(toy, task):
        if task.name == "train":
            stuck.wait(30)

    here = lab({"one": lab.toy(1.0, 10, breaks=breaks)}, more="timeouts: {task: 0.5s}")
    when(here, "task.failed", stuck.set)
    ended = here.run()
    assert ended.state is RunState.FAILED and "K33 train: stopped after 0.5 s" in ended.reason
