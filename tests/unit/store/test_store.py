"""Spool, journal, local store, runs: what is on disk after each step, and after a bad one."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from blake3 import blake3

from openfed.errors import OpenFedError, TransportError, UsageError, WireError
from openfed.failpoints import VARIABLE
from openfed.files import write_whole
from openfed.store.journal import Journal, Reply, Turn
from openfed.store.local import RESIDUAL, TASK, LocalStore, Owed
from openfed.store.runs import choose_run, hold, new_run_id
from openfed.store.scratch import IN_MEMORY, scratch
from openfed.store.spool import Spool
from openfed.tensors.frame import pack
from openfed.tensors.record import Kind, Record, Spec

DATA = bytes(range(256)) * 40
DIGEST = blake3(DATA).hexdigest()


# -- the spool -------------------------------------------------------------------------------------


def test_a_blob_is_named_by_its_digest_and_read_from_any_offset(tmp_path):
    spool = Spool(tmp_path)
    assert spool.put([DATA[:100], memoryview(DATA)[100:]]) == (DIGEST, len(DATA))
    assert b"".join(spool.read(DIGEST, 0, 1000)) == DATA
    assert b"".join(spool.read(DIGEST, 9999, 1000)) == DATA[9999:]
    assert spool.has(DIGEST) and not spool.has(DIGEST, "one")


@pytest.mark.parametrize("name", [DIGEST, "a name before the digest is known"])
def test_a_transfer_goes_on_where_it_broke_and_is_there_only_when_whole(tmp_path, name):
    spool = Spool(tmp_path)
    with spool.grow(name, "one", size=len(DATA)) as growing:
        growing.append(DATA[:3000])
    assert spool.grown(name, "one") == 3000 and not spool.has(DIGEST, "one")
    with Spool(tmp_path).grow(name, "one", size=len(DATA)) as growing:
        assert growing.at == 3000
        growing.append(memoryview(DATA)[3000:])
        assert not spool.has(DIGEST, "one")
        assert growing.finish(DIGEST) == DIGEST
    assert spool.path(DIGEST, "one").read_bytes() == DATA
    assert spool.grown(DIGEST, "one") == 0  # nothing of it is growing any more
    assert spool.became(name, "one") == ("" if name == DIGEST else DIGEST)
    assert spool.became(name, "two") == spool.became("another", "one") == ""
    assert not list(spool.growing.iterdir())
    spool.keep_only({f"one.{DIGEST}"})
    assert not list(spool.settled.iterdir())


CRASH = """
import os, sys
from pathlib import Path
from openfed.failpoints import arm
from openfed.store.spool import Spool
arm(os.environ)
with Spool(Path(sys.argv[1])).grow("upload", "one", size=100_000) as growing:
    growing.append(b"x" * 50_000)
    growing.append(b"y" * 50_000)
    growing.finish()
"""


@pytest.mark.parametrize(
    "armed",
    ["block=kill@1", "block=kill@2", *(f"{p}=kill@1" for p in ("written", "synced", "renamed"))],
)
def test_no_byte_that_came_before_a_crash_must_come_again(tmp_path, armed):
    words = [sys.executable, "-c", CRASH, str(tmp_path)]
    died = subprocess.run(words, env={VARIABLE: f"spool.{armed}"}, stderr=subprocess.DEVNULL)
    assert died.returncode == -signal.SIGKILL
    spool, data = Spool(tmp_path), b"x" * 50_000 + b"y" * 50_000
    if not spool.became("upload", "one"):
        part = spool.growing / "one.upload"
        assert part.stat().st_mode & 0o200  # a user who is not root can go on with it
        with spool.grow("upload", "one", size=100_000) as growing:
            assert growing.at == (50_000 if armed == "block=kill@1" else 100_000)
            growing.append(data[growing.at :])
            growing.finish()
    found = spool.became("upload", "one")
    assert found == blake3(data).hexdigest() and spool.path(found, "one").read_bytes() == data
    assert not list(spool.growing.iterdir())
    spool.drop(found, "one")
    assert spool.became("upload", "one") == ""


def test_a_transfer_whose_digest_nobody_knew_gets_its_own(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow("upload", "one", size=len(DATA)) as growing:
        growing.append(DATA)
        assert growing.finish() == DIGEST
    assert spool.has(DIGEST, "one") and spool.grown("upload", "one") == 0


@pytest.mark.parametrize("durable", [True, False])
def test_a_blob_of_its_own_is_there_only_when_it_is_finished(tmp_path, durable):
    spool = Spool(tmp_path)
    with spool.writing() as blob:
        blob.append(DATA[:100], memoryview(DATA)[100:])
        blob.flush()
        assert blob.path.read_bytes() == DATA and blob.size == len(DATA)
        assert not spool.has(DIGEST)
        assert blob.finish(durable=durable) == (DIGEST, len(DATA))
    assert b"".join(spool.read(DIGEST, 0, 1000)) == DATA
    assert not list(spool.growing.iterdir())


def test_writing_that_fails_leaves_nothing(tmp_path):
    spool = Spool(tmp_path)
    with pytest.raises(RuntimeError), spool.writing() as blob:
        blob.append(DATA)
        raise RuntimeError
    with pytest.raises(RuntimeError):
        spool.put(failing())
    assert not list(spool.growing.iterdir()) and not list(spool.blobs.iterdir())


def test_two_blobs_can_be_written_at_once(tmp_path):
    spool = Spool(tmp_path)
    with spool.writing() as one, spool.writing() as two:
        one.append(DATA)
        two.append(DATA[1:])
        assert one.finish()[0] == DIGEST != two.finish()[0]


def test_a_model_that_is_mapped_is_a_view_and_cannot_be_written(tmp_path):
    spool = Spool(tmp_path)
    tensors = {"i": np.array([1, 2]), "w": np.float32([[1, 2], [3, 4]]), "none": np.zeros((0, 3))}
    digest, _ = spool.put([pack(Record(tensors))])
    found = spool.mapped(digest)
    assert {name: x.tolist() for name, x in found.items()} == {
        name: x.tolist() for name, x in tensors.items()
    }
    assert not any(x.flags.owndata or x.flags.writeable for x in found.values())
    spool.drop(digest)
    assert found["w"][1, 1] == 4  # what is mapped stays until it is let go


def test_what_one_site_sent_is_never_taken_as_another_s(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow(DIGEST, "one", size=len(DATA)) as growing:
        growing.append(DATA)
        growing.finish(DIGEST)
    assert spool.grown(DIGEST, "two") == 0
    assert not spool.has(DIGEST, "two") and not spool.has(DIGEST)


def test_other_bytes_and_too_many_are_refused_and_dropped(tmp_path):
    spool = Spool(tmp_path)
    for size, data in ((len(DATA), b"\1" * len(DATA)), (len(DATA), DATA[:10]), (1 << 30, DATA * 2)):
        with spool.grow(DIGEST, size=size) as growing:
            growing.append(data)
            with pytest.raises(WireError, match="W05"):
                growing.finish(DIGEST)
        assert spool.grown(DIGEST) == 0
    for before in (0, 6):
        with spool.grow(DIGEST, size=10) as growing:
            growing.append(DATA[:before])
            with pytest.raises(WireError, match="W04"):
                growing.append(DATA[: 11 - before])
        assert spool.grown(DIGEST) == 0
    assert not list(spool.blobs.iterdir()) and not list(spool.growing.iterdir())


def test_what_a_transfer_discards_is_gone(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow("upload", "one", size=len(DATA)) as growing:
        growing.append(DATA)
        growing.discard()
    assert spool.grown("upload", "one") == 0 and not list(spool.growing.iterdir())


def test_a_transfer_of_as_much_as_allowed_is_taken(tmp_path):
    with Spool(tmp_path).grow(DIGEST, size=len(DATA)) as growing:
        growing.append(DATA)
        assert growing.finish(DIGEST) == DIGEST


def test_a_blob_has_one_writer(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow(DIGEST, "one", size=len(DATA)) as growing:
        growing.append(DATA[:100])
        with pytest.raises(TransportError, match="T14") as caught:
            spool.grow(DIGEST, "one", size=len(DATA))
        assert not caught.value.permanent
        growing.append(DATA[100:])
        growing.finish()
    assert spool.size(DIGEST, "one") == len(DATA)


def test_a_transfer_that_nobody_waits_for_any_more_ends(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow(DIGEST, "one", size=len(DATA)) as growing:
        growing.append(DATA)
        spool.keep_only(())
        with pytest.raises(WireError, match="W04"):
            growing.finish()


def test_keep_only_keeps_what_is_named(tmp_path):
    spool = Spool(tmp_path)
    names = [spool.put([bytes([i])])[0] for i in range(3)]
    spool.keep_only({names[1]})
    assert [spool.has(name) for name in names] == [False, True, False]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"old")
    with pytest.raises(RuntimeError):
        write_whole(path, failing())
    assert path.read_bytes() == b"old"
    write_whole(path, [b"n", b"ew"])
    assert path.read_bytes() == b"new"


def failing():
    yield b"half"
    raise RuntimeError("the disk is gone")


# -- the journal -----------------------------------------------------------------------------------


def test_what_was_written_is_there_after_it_is_opened_again(tmp_path):
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.set_facts({"run": "r", "status": "running"})
    journal.open_ask("a", 1, 0, "train")
    journal.add_reply("a", Reply("two", "d2", 7))
    journal.add_reply("a", Reply("one", "", 0, "K23", "NaN"))
    journal.set_elapsed("a", 2.5)
    journal.commit_turn(Turn(0, {"x": 1}), 0.0)
    journal.commit_turn(Turn(1, {"x": {"frame": "f"}}), 1.0)
    assert journal.note("now", 17.0) == 17.0
    journal.close()
    again = Journal(path)
    row = again.ask_at(1, 0)
    assert (row.id, row.task, row.elapsed_s, row.met) == ("a", "train", 2.5, None)
    assert row.replies == (Reply("two", "d2", 7), Reply("one", "", 0, "K23", "NaN"))
    assert again.turn() == Turn(1, {"x": {"frame": "f"}})
    assert again.note("now", 99.0) == 17.0
    assert again.fact("status") == "running" and again.fact("other") is None
    again.close_ask("a", True)
    assert again.ask("a").met is True and again.ask("b") is None
    again.close()


def test_a_transaction_is_all_or_nothing_also_when_nested(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.open_ask("a", 1, 0, "train")
    with pytest.raises(RuntimeError), journal.transaction():
        journal.add_reply("a", Reply("one", "d", 1))
        journal.close_ask("a", True)
        raise RuntimeError
    assert journal.ask("a").replies == () and journal.ask("a").met is None
    journal.close()


def test_one_reply_per_collaborator_and_one_ask_per_place(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    journal.open_ask("a", 1, 0, "train")
    journal.add_reply("a", Reply("one", "d", 1))
    with pytest.raises(OpenFedError, match="S10"):
        journal.add_reply("a", Reply("one", "e", 1))
    with pytest.raises(OpenFedError, match="S10"):
        journal.open_ask("b", 1, 0, "train")
    journal.close()


def test_a_damaged_journal_is_said_so(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(OpenFedError, match="S10"):
        Journal(path)


def test_every_commit_is_synced(tmp_path):
    journal = Journal(tmp_path / "journal.sqlite")
    assert journal._rows("pragma synchronous") == [(2,)]
    assert journal._rows("pragma journal_mode") == [("wal",)]
    journal.close()


# -- the agent's store -----------------------------------------------------------------------------


def reply(store, ask, **states):
    """An encoded reply on disk and the states that it proposes, committed."""
    put = lambda text: store.spool.put([text.encode()])  # noqa: E731
    digest, size = put(f"reply to {ask}")
    proposed = {name: put(text)[0] for name, text in states.items()}
    owed = Owed(ask, f"upload of {ask}", digest, size, proposed)
    store.owe(owed)
    return owed


def test_states_are_adopted_once_and_only_with_an_accepted_reply(tmp_path):
    store = LocalStore(tmp_path)
    assert store.state(TASK) is None and store.state(RESIDUAL) is None
    first = reply(store, "ask1", task="t1", residual="r1")
    assert store.state(TASK) is None and store.owed("ask1") == first
    assert store.unsettled() == [first]
    store.settle(first, "accepted", accepted=True)
    assert store.unsettled() == []
    store.settle(first, "duplicate", accepted=True)
    assert store.state(TASK) == blake3(b"t1").hexdigest()
    assert store.state(RESIDUAL) == blake3(b"r1").hexdigest()
    late = reply(store, "ask2", task="t2", residual="r2")
    store.settle(late, "late", accepted=False)
    assert store.state(TASK) == first.states[TASK]
    assert store.state(RESIDUAL) == first.states[RESIDUAL]
    third = reply(store, "ask3", residual="r3")  # a task without a state of its own
    store.settle(third, "accepted", accepted=True)
    store.settle(first, "duplicate", accepted=True)
    store.settle(late, "accepted", accepted=True)  # it has been ruled upon
    assert store.state(TASK) == first.states[TASK]
    assert store.state(RESIDUAL) == third.states[RESIDUAL]
    store.settle(reply(store, "ask4"), "accepted", accepted=True)
    assert store.state(RESIDUAL) == third.states[RESIDUAL]
    store.close()
    again = LocalStore(tmp_path)
    assert again.state(TASK) == first.states[TASK]
    assert again.state(RESIDUAL) == third.states[RESIDUAL]
    again.close()


def test_sweeping_keeps_the_states_and_what_is_owed(tmp_path):
    store = LocalStore(tmp_path)
    done = reply(store, "ask1", task="t1", residual="r1")
    store.settle(done, "accepted", accepted=True)
    owed = reply(store, "ask2", task="t2", residual="r2")
    kept = store.spool.put([b"model"])[0]
    gone = store.spool.put([b"old model"])[0]
    store.sweep([kept])
    states = [*done.states.values(), *owed.states.values()]
    there = {name for name in (kept, gone, done.digest, owed.digest, *states)
             if store.spool.has(name)}  # fmt: skip
    assert there == {kept, owed.digest, *states}
    store.close()
    again = LocalStore(tmp_path)
    assert again.owed("ask2") == owed and again.unsettled() == [owed]
    assert all(again.spool.has(name) for name in (owed.digest, *states))
    again.close()


def test_after_a_crash_only_what_is_whole_is_taken_for_whole(tmp_path):
    store = LocalStore(tmp_path)
    pulled, torn = (store.spool.put([text])[0] for text in (b"a model", b"another"))
    with store.spool.grow("half", size=100) as growing:
        growing.append(b"half")
    own = store.spool.writing()
    own.append(b"what was being encoded")
    own.file.close()
    store.close()
    store.spool.path(torn).chmod(0o600)
    store.spool.path(torn).write_bytes(b"\0\0\0\0\0\0\0")  # renamed, but never on the disk
    again = LocalStore(tmp_path)
    assert again.spool.has(pulled) and not again.spool.has(torn)
    assert again.spool.grown("half") == 4 and not own.path.exists()
    again.sweep([])
    assert not again.spool.has(pulled) and again.spool.grown("half") == 0
    again.close()


# -- scratch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [IN_MEMORY, 0], ids=["in memory", "in a file"])
def test_scratch_is_memory_for_every_entry_and_leaves_no_file(tmp_path, monkeypatch, most):
    monkeypatch.setattr("openfed.store.scratch.IN_MEMORY", most)
    signature = (
        Spec("a", "int8", (3,), Kind.BUFFER),
        Spec("b", "float32", (2, 700)),
        Spec("c", "bfloat16", ()),
        Spec("d", "float64", (0, 4)),
    )
    found = scratch(tmp_path, signature)
    for value, (name, x) in enumerate(found.items(), start=1):
        x[...] = value
        assert (x == value).all(), name
    assert [(n, x.dtype.name, x.shape) for n, x in found.items()] == [
        (spec.name, spec.dtype, spec.shape) for spec in signature
    ]
    assert [x.reshape(-1)[:1].tolist() for x in found.values()] == [[1], [2], [3], []]
    assert not list(tmp_path.iterdir())


# -- runs ------------------------------------------------------------------------------------------


def a_run(workspace, name, digest="p", status="running"):
    journal = Journal(workspace / "runs" / name / "journal.sqlite")
    journal.set_facts({"run": name, "plan_digest": digest, "status": status, "reason": "why"})
    journal.close()


@pytest.mark.parametrize(
    ("known", "mode", "action", "said"),
    [
        ([], "auto", "new", "first run"),
        ([("r1", "p", "running")], "auto", "resume", "resumes run r1"),
        ([("r1", "p", "running")], "resume", "resume", "resumes run r1"),
        ([("r1", "p", "running")], "new", "new", "as asked"),
        ([("r1", "p", "completed")], "auto", "complete", "r1"),
        ([("r1", "p", "completed")], "new", "new", "as asked"),
        ([("r1", "p", "failed")], "auto", "new", "failed: why"),
        ([("r1", "q", "running")], "auto", "new", "plan changed since run r1"),
        ([("r1", "p", "running"), ("r2", "p", "completed")], "auto", "complete", "r2"),
        ([("r1", "p", "completed"), ("r2", "p", "running")], "auto", "resume", "r2"),
    ],
)
def test_a_start_goes_on_or_begins_anew_and_says_why(tmp_path, known, mode, action, said):
    for name, digest, status in known:
        a_run(tmp_path, name, digest, status)
    decision = choose_run(tmp_path, "p", mode)
    assert decision.action == action and said in decision.reason
    assert (decision.run in [name for name, *_ in known]) == (action != "new")


@pytest.mark.parametrize("known", [[], [("r1", "p", "completed")], [("r1", "q", "running")]])
def test_nothing_is_resumed_into_a_plan_it_does_not_belong_to(tmp_path, known):
    for name, digest, status in known:
        a_run(tmp_path, name, digest, status)
    with pytest.raises(UsageError, match="U40"):
        choose_run(tmp_path, "p", "resume")


def test_a_run_that_was_killed_before_its_first_commit_does_not_count(tmp_path):
    folder = tmp_path / "runs" / "r1"
    folder.mkdir(parents=True)
    (folder / "journal.sqlite").touch()
    assert choose_run(tmp_path, "p").action == "new"


def test_one_process_holds_a_run(tmp_path):
    held = hold(tmp_path / "r1")
    with pytest.raises(OpenFedError, match="S11"):
        hold(tmp_path / "r1")
    os.close(held)
    os.close(hold(tmp_path / "r1"))


def test_one_agent_works_in_a_store(tmp_path):
    store = LocalStore(tmp_path)
    with pytest.raises(OpenFedError, match="S11"):
        LocalStore(tmp_path)
    store.close()


def test_ids_sort_by_time_and_differ():
    ids = [new_run_id() for _ in range(20)]
    assert len(set(ids)) == 20 and all(len(i) == 22 for i in ids)


def test_what_is_whole_is_not_written_to_by_accident(tmp_path):
    spool = Spool(tmp_path)
    digest, _ = spool.put([DATA])
    with spool.grow("name", "one", size=len(DATA)) as growing:
        growing.append(DATA)
        growing.finish()
    for path in (spool.path(digest), spool.path(digest, "one")):
        assert path.stat().st_mode & 0o777 == 0o400
