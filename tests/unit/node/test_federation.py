"""A whole federation in one process, against the formula and its own journal."""

import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest

from openfed.errors import TaskError
from openfed.flow.federation import Federation
from openfed.node.aggregator import Aggregator
from openfed.node.trainer import DirectTrainer
from openfed.store.journal import Journal
from openfed.store.local import TASK, LocalStore
from openfed.store.runs import choose_run
from openfed.store.spool import Spool
from openfed.tensors.frame import Held, digest
from openfed.tensors.model_file import read_model
from openfed.tensors.record import Record


def test_the_model_after_each_round_is_the_formula(lab):
    here = lab({"one": lab.toy(1.0, 10), "two": lab.toy(-0.5, 30)}, rounds=3)
    ended = here.run()
    assert ended.state == "completed", ended.reason
    model = {"w": np.float32([1, 2, 3]), "m": np.zeros(2, np.float32)}
    for r in (1, 2, 3):
        for name, factor in (("w", np.float32([1, -1, 0.1])), ("m", np.float32([1, 1]))):
            base = model[name]
            one = (base + np.float32(1.0 * r) * factor) - base
            two = (base + np.float32(-0.5 * r) * factor) - base
            mean = (np.float32(10) * one + np.float32(30) * two) / np.float32(40)
            model[name] = base + mean
    last = read_model(here.root / "save" / "toy_last.safetensors")
    assert last["w"].tobytes() == model["w"].tobytes()
    assert last["bn.mean"].tobytes() == model["m"].tobytes()
    assert last["bn.count"] == 30 + 60 + 90
    assert last["fixed"].tolist() == [7, 8]
    assert ended.summary["model"]["digest"] == digest(Record(last))


def two(lab, **settings):
    return lab({"one": lab.toy(1.0, 10), "two": lab.toy(-0.5, 30)}, **settings)


def last_digest(here):
    return digest(Record(read_model(here.root / "save" / "toy_last.safetensors")))


def test_metrics_speak_of_the_model_they_were_measured_on_and_divide_once(lab):
    here = lab({"one": lab.toy(1, 10, correct=9), "two": lab.toy(1, 30, correct=15)}, rounds=2)
    here.run()
    rows = [m for m in here.of("metric") if m["metric"] == "accuracy"]
    assert [(m["round"], m["model"], m["collaborator"], m["value"], m["n"]) for m in rows[:3]] == [
        (1, 0, "one", 0.9, 10),
        (1, 0, "two", 0.5, 30),
        (1, 0, "aggregate", 24 / 40, 40),
    ]
    aggregates = [(m["round"], m["model"]) for m in rows if m["collaborator"] == "aggregate"]
    assert aggregates == [(1, 0), (2, 1), (2, 2)]


def test_seeds_differ_by_round_collaborator_and_task_and_come_from_the_plan(lab):
    here, again = two(lab), two(lab)
    here.run()
    again.run("other")
    seeds = {name: [s[:3] for s in toy.seen] for name, toy in here.toys.items()}
    assert seeds == {name: [s[:3] for s in toy.seen] for name, toy in again.toys.items()}
    drawn = [seed for seen in seeds.values() for _, _, seed in seen]
    assert len(set(drawn)) == len(drawn) == 2 * (3 + 4)


def test_the_same_plan_gives_the_same_digest_in_whatever_order_sites_answer(lab):
    def three():
        toys = {"one": lab.toy(0.1, 10), "two": lab.toy(-0.7, 30), "zoe": lab.toy(0.3, 7)}
        return lab(toys, rounds=2)

    def waits(seconds):
        return lambda toy, task: threading.Event().wait(seconds)

    here = three()
    here.run()
    for order in (("two", "zoe", "one"), ("zoe", "one", "two")):
        other = three()
        for place, name in enumerate(order):
            other.toys[name].breaks = waits(0.2 * place)
        other.run()
        assert last_digest(other) == last_digest(here)
        assert next(e["collaborator"] for e in other.of("reply")) != "one"


def test_a_model_is_validated_as_often_as_the_plan_says_and_always_at_the_end(lab):
    here = two(lab, rounds=4, more="validation: {every: 3}")
    here.run()
    assert [m["model"] for m in here.of("metric") if m["metric"] == "accuracy"][::3] == [0, 3, 4]


def test_local_state_is_versioned_and_only_an_accepted_reply_moves_it(lab):
    here = two(lab)
    here.run()
    trained = [local for name, _, _, local in here.toys["one"].seen if name == "train"]
    assert trained == [[], ["seen"], ["seen"]]
    store = LocalStore(here.root / "runs" / "r1" / "agents" / "one")
    with store.spool.open(store.state(TASK), limit=1 << 20) as frame:
        assert frame.record().tensors["seen"].tolist() == [3.0]
    store.close()


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"])
def test_a_crash_after_any_commit_changes_nothing(lab, tmp_path, crash_points, step):
    here = two(lab, rounds=2)
    points = crash_points(here, tmp_path / "points")
    assert len(points) > 20
    seen = []
    for point in reversed(points[::-step]):  # with the last
        shutil.copytree(here.root / "plan", point / "plan")
        (point / "save").mkdir()
        shutil.copy(here.root / "save" / "toy_init.safetensors", point / "save")
        here.root, original = point, here.root
        before = len(here.events)
        ended = here.run()
        seen.append([e for e in here.events[before:] if e["event"] == "round.started"])
        assert ended.state == "completed"
        assert last_digest(here) == ended.summary["model"]["digest"]
        here.root, now = original, ended.summary["model"]["digest"]
        assert now == last_digest(here)
    assert [len(rounds) for rounds in seen] == sorted((len(r) for r in seen), reverse=True)
    assert len(seen[-1]) == 0
    told = [event["event"] for event in here.events[before:]]
    assert "metric" not in told and "model.best" not in told  # all had been told before


def test_a_changed_flow_is_found_when_it_is_replayed(lab, tmp_path, crash_points):
    here = two(lab, rounds=2)
    points = crash_points(here, tmp_path / "points")
    for point in points:
        journal = Journal(point / "runs" / "r1" / "journal.sqlite")
        opened = [row for row in journal.asks() if row.met is None]
        journal._write("update asks set id = 'changed' where met is null")
        journal.close()
        if opened:
            break
    assert len(opened) == 1
    shutil.copytree(here.root / "save", point / "save")
    here.root = point
    ended = here.run()
    assert ended.state == "failed" and ended.reason.startswith("F02")


def test_updates_are_kept_as_long_as_the_plan_says_and_give_the_model_again(lab):
    blobs = {}
    for kept, rounds in (("none", 0), ("{rounds: 2}", 2), ("all", 3)):
        here = two(lab, rounds=3, more=f"retention: {{updates: {kept}}}")
        here.run()
        found = list((here.root / "runs" / "r1" / "blobs").glob("*.*"))
        journal = Journal(here.root / "runs" / "r1" / "journal.sqlite")
        kept_rounds = {
            row.round
            for row in journal.asks()
            for reply in row.replies
            if row.task == "train"
            and any(p.name == f"{reply.collaborator}.{reply.digest}" for p in found)
        }
        journal.close()
        assert len(kept_rounds) == rounds and (not rounds or 3 in kept_rounds)
        blobs[kept] = found
    w = np.float32([1, 2, 3])
    for _, updates in sorted(here.updates().items()):
        weights = [head.numbers["n"][0] for _, head, _ in updates]
        acc = np.float32(weights[0]) * updates[0][2]["w"]
        acc = acc + np.float32(weights[1]) * updates[1][2]["w"]
        w = w + acc / np.float32(sum(weights))
    assert here.last["w"].tobytes() == w.tobytes()


def test_best_keeps_the_earlier_of_equals_and_is_saved(lab):
    def score(toy, task):
        toy.correct = {1: 5.0, 2: 9.0, 3: 9.0, 4: 2.0, 5: 1.0}[task.round]

    here = lab({"one": lab.toy(1.0, 10, breaks=score)}, rounds=4)
    ended = here.run()
    assert ended.summary["best"] == {"model": 1, "metric": "accuracy", "value": 0.9}
    best = read_model(here.root / "save" / "toy_best.safetensors")
    assert best["bn.count"] == 10
    assert read_model(here.root / "save" / "toy_last.safetensors")["bn.count"] == 100


def test_training_stops_when_the_metric_no_longer_improves(lab):
    def score(toy, task):
        toy.correct = {1: 5.0, 2: 9.0}.get(task.round, 8.0)

    more = "stop: {metric: accuracy, patience: 2}"
    here = lab({"one": lab.toy(1.0, 10, breaks=score)}, rounds=9, more=more)
    ended = here.run()
    assert ended.summary["rounds"] == 3
    assert ended.summary["reason"] == "stopped early: accuracy did not improve in 2 validations"
    assert read_model(here.root / "save" / "toy_last.safetensors")["bn.count"] == 10 + 20 + 30
    assert [m["model"] for m in here.of("metric") if m["metric"] == "accuracy"][-1] == 3


def fails(code):
    def breaks(toy, task):
        if task.name == "train" and task.round == 2:
            raise TaskError(code, "the data is gone", traceback="line 7 of the user's code")

    return breaks


def test_a_failed_task_fails_the_run_with_its_reason_when_everyone_is_needed(lab):
    here = two(lab)
    here.toys["two"].breaks = fails("K23")
    ended = here.run()
    assert ended.state == "failed"
    assert "train in round 2: expected replies of 2 of 2" in ended.reason
    assert "two: K23 the data is gone" in ended.reason
    (told,) = here.of("task.failed")
    assert told["traceback"] == "line 7 of the user's code"
    assert (told["collaborator"], told["round"], told["code"]) == ("two", 2, "K23")


def test_the_run_goes_on_with_its_quorum(lab):
    here = two(lab, more="cohort: {quorum: 1, deadline: 10m}")
    here.toys["two"].breaks = fails("K23")
    ended = here.run()
    assert ended.state == "completed"
    rounds = {
        e["round"]: list(e["accepted"]) for e in here.of("ask.closed") if e["task"] == "train"
    }
    assert rounds == {1: ["one", "two"], 2: ["one"], 3: ["one", "two"]}


def test_the_deadline_ends_a_round_without_the_slow_one_and_its_reply_is_late(lab):
    release, seen = threading.Event(), []

    def stalls(toy, task):
        if task.name == "train" and task.round == 1:
            release.wait(30)
        if task.round == 2:
            seen.append(task.name)

    here = two(lab, rounds=2, more="cohort: {quorum: 1, deadline: 1s}")
    here.toys["two"].breaks = stalls
    emit = here.emit
    here.emit = lambda kind, fields: (emit(kind, fields), kind == "round.ended" and release.set())
    ended = here.run()
    assert ended.state == "completed"
    closed = [e for e in here.of("ask.closed") if e["task"] == "train"]
    assert [list(e["missing"]) for e in closed][0] == ["two"]


BAD = {
    "NaN": ("K23", lambda t: {**t, "w": np.float32([1, np.nan, 3])}),
    "another shape": ("K22", lambda t: {**t, "w": np.zeros((3, 1), np.float32)}),
    "another dtype": ("K22", lambda t: {**t, "w": np.zeros(3)}),
    "a missing entry": ("K21", lambda t: {"w": t["w"]}),
    "an unknown entry": ("K21", lambda t: {**t, "x": t["w"]}),
    "the frozen entry": ("K21", lambda t: {**t, "fixed": np.zeros(2, np.float32)}),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_update_is_refused_by_name_at_the_site(lab, fault):
    code, spoil = BAD[fault]
    here = two(lab, rounds=1)

    class Spoiled(DirectTrainer):
        async def run(self, task, inputs, limit):
            outcome = await super().run(task, inputs, limit)
            if task.name == "train" and task.collaborator == "two":
                spoilt = spoil(outcome.trained.record.tensors)
                return replace(outcome, trained=Held(Record(spoilt)))
            return outcome

    ended = here.run(wrap=lambda trainer: Spoiled(trainer._run))
    assert ended.state == "failed"
    assert f"two: {code} " in ended.reason


def test_a_site_without_validation_data_is_left_out_of_the_mean(lab):
    here = lab({"one": lab.toy(1, 10, correct=9), "two": lab.toy(1, 30)}, rounds=1)

    class NoData(DirectTrainer):
        async def run(self, task, inputs, limit):
            outcome = await super().run(task, inputs, limit)
            if task.name == "validate" and task.collaborator == "two":
                return replace(outcome, numbers={"n": (0.0,)})
            return outcome

    here.run(wrap=lambda trainer: NoData(trainer._run))
    rows = [m for m in here.of("metric") if m["metric"] == "accuracy" and m["model"] == 1]
    assert [(m["collaborator"], m["value"]) for m in rows] == [("one", 0.9), ("aggregate", 0.9)]


def test_sums_that_overflow_never_become_a_model(lab):
    here = lab({"one": lab.toy(3e37, 10), "two": lab.toy(3e37, 10)}, rounds=3)
    ended = here.run()
    assert ended.state == "failed" and ended.reason.startswith("F04")
    assert "w is not finite" in ended.reason or "bn.mean is not finite" in ended.reason
    assert not (here.root / "save" / "toy_last.safetensors").exists()


def test_a_disk_that_fails_at_the_end_leaves_a_run_that_can_be_resumed(lab):
    here = two(lab, rounds=2)
    manifest = here.root / "save" / "manifest.json"
    here.toys["one"].breaks = lambda toy, task: manifest.mkdir(exist_ok=True)  # no file fits there
    with pytest.raises(OSError):
        here.run()
    assert choose_run(here.root, here.lock.digest).action == "resume"
    manifest.rmdir()
    before = len(here.toys["one"].seen)
    assert here.run().state == "completed"
    assert len(here.toys["one"].seen) == before  # everything was answered from the journal


def no_memory():
    np.empty(1 << 55)  # more than any machine has


def no_thread():
    raise RuntimeError("can't start new thread")  # as Python says it


@pytest.mark.parametrize("refused", [no_memory, no_thread])
def test_an_aggregator_without_memory_leaves_a_run_that_can_be_resumed(lab, refused):
    here = two(lab, rounds=3)
    emit = here.emit

    def without_memory(kind, fields):
        emit(kind, fields)
        if kind == "round.started" and fields["round"] == 2:
            here.emit = emit
            refused()

    here.emit = without_memory
    with pytest.raises((MemoryError, RuntimeError)):
        here.run()
    assert choose_run(here.root, here.lock.digest).action == "resume"
    assert here.run().state == "completed"


def test_frozen_entries_are_stored_once(lab):
    puts = []
    put = Spool.put

    def counted(self, given):
        found = put(self, given)
        puts.append(found[0])
        return found

    Spool.put = counted
    try:
        here = lab({"one": lab.toy(1.0, 10)}, rounds=3)
        here.run()
    finally:
        Spool.put = put
    frozen = digest(Record({"fixed": np.float32([7, 8])}))
    assert puts.count(frozen) == 1


def test_a_failed_run_leaves_the_last_and_the_best_model_of_its_rounds(lab):
    here = two(lab, rounds=4)
    here.toys["two"].breaks = fails("K23")
    ended = here.run()
    assert (ended.state, ended.summary["rounds"]) == ("failed", 1)
    assert last_digest(here) == ended.summary["model"]["digest"]
    assert read_model(here.root / "save" / "toy_last.safetensors")["bn.count"] == 30
    assert (here.root / "save" / "toy_best.safetensors").exists()


def test_a_run_that_fails_before_its_first_round_shows_no_model_of_an_earlier_one(lab):
    here = two(lab, rounds=2)
    here.run("r1")

    def at_once(toy, task):
        raise TaskError("K23", "no data")

    here.toys["two"].breaks = at_once
    ended = here.run("r2")
    assert ended.state == "failed" and ended.summary["model"] is None
    left = {path.name for path in (here.root / "save").iterdir()}
    assert left == {"toy_init.safetensors", "manifest.json", "ledger.jsonl"}


def test_what_one_site_says_when_it_fails_is_not_told_to_another(lab):
    here = two(lab, rounds=2)

    def secret(toy, task):
        raise TaskError("K02", "no such patient 12345", traceback="patient 12345")

    here.toys["two"].breaks = secret
    told, orders = [], Aggregator._orders

    def listen(self, name, asking):
        found = orders(self, name, asking)
        told.append(found.reason)
        return found

    Aggregator._orders = listen
    try:
        ended = here.run()
    finally:
        Aggregator._orders = orders
    assert "12345" in ended.reason
    assert any(told) and not any("12345" in reason for reason in told)


def test_time_and_draws_are_the_same_again_when_the_flow_is_replayed(lab, tmp_path):
    here = two(lab)
    clock = iter((100.0, 200.0)).__next__

    def life():
        journal = Journal(tmp_path / "journal.sqlite")
        spool, initial = Spool(tmp_path), dict
        fed = Federation(here.lock, None, journal, spool, here.emit, clock, initial)
        told = fed.now(), fed.rng("mask", 1).integers(1 << 60), fed.rng("mask", 2).integers(1 << 60)
        journal.close()
        return told

    first, again = life(), life()
    assert first == again and first[0] == 100.0
    assert first[1] != first[2]
