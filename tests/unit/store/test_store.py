"""Spool, journal, local store, runs: what is on disk after each step, and after a bad one."""

import hashlib
import os

import pytest

from openfed.errors import OpenFedError, TransportError, UsageError, WireError
from openfed.files import write_whole
from openfed.store.journal import Journal, Reply, Turn
from openfed.store.local import LocalStore
from openfed.store.runs import choose_run, hold, new_run_id
from openfed.store.spool import Spool

DATA = bytes(range(256)) * 40
DIGEST = hashlib.sha256(DATA).hexdigest()


# -- the spool -------------------------------------------------------------------------------------


def test_a_blob_is_named_by_its_digest_and_read_from_any_offset(tmp_path):
    spool = Spool(tmp_path)
    assert spool.put([DATA[:100], memoryview(DATA)[100:]]) == (DIGEST, len(DATA))
    assert b"".join(spool.read(DIGEST, 0, 1000)) == DATA
    assert b"".join(spool.read(DIGEST, 9999, 1000)) == DATA[9999:]
    assert spool.has(DIGEST) and not spool.has(DIGEST, "one")


def test_a_transfer_goes_on_where_it_broke_and_is_there_only_when_whole(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow(DIGEST, "one", size=len(DATA)) as growing:
        growing.append(DATA[:3000])
    assert spool.grown(DIGEST, "one") == 3000 and not spool.has(DIGEST, "one")
    with Spool(tmp_path).grow(DIGEST, "one", size=len(DATA)) as growing:
        assert growing.at == 3000
        growing.append(DATA[3000:])
        assert not spool.has(DIGEST, "one")
        growing.finish()
    assert b"".join(spool.read(DIGEST, 0, 4096, "one")) == DATA
    assert spool.grown(DIGEST, "one") == len(DATA)


def test_what_one_site_sent_is_never_taken_as_another_s(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow(DIGEST, "one", size=len(DATA)) as growing:
        growing.append(DATA)
        growing.finish()
    assert spool.grown(DIGEST, "two") == 0
    assert not spool.has(DIGEST, "two") and not spool.has(DIGEST)


def test_other_bytes_too_many_and_too_few_are_refused_and_dropped(tmp_path):
    spool = Spool(tmp_path)
    with spool.grow(DIGEST, size=len(DATA)) as growing:
        growing.append(b"\1" * len(DATA))
        with pytest.raises(WireError, match="W05"):
            growing.finish()
    assert spool.grown(DIGEST) == 0
    with spool.grow(DIGEST, size=10) as growing, pytest.raises(WireError, match="W04"):
        growing.append(DATA)
    assert spool.grown(DIGEST) == 0
    with spool.grow(DIGEST, size=len(DATA)) as growing:
        growing.append(DATA[:10])
        with pytest.raises(WireError, match="W04"):
            growing.finish()
    assert spool.grown(DIGEST) == 10


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


def test_a_state_is_adopted_once_and_only_with_an_accepted_reply(tmp_path):
    store = LocalStore(tmp_path)
    assert store.state() is None
    owed = store.owe("ask1", [b"reply"], [b"state 1"])
    assert store.state() is None and store.owed("ask1") == owed
    assert store.unsettled() == [owed]
    store.settle(owed, "accepted", accepted=True)
    assert store.unsettled() == []
    store.settle(owed, "duplicate", accepted=True)
    first = store.state()
    assert first == hashlib.sha256(b"state 1").hexdigest()
    late = store.owe("ask2", [b"reply"], [b"state 2"])
    store.settle(late, "late", accepted=False)
    assert store.state() == first
    third = store.owe("ask3", [b"reply"], [b"state 3"])
    store.settle(third, "accepted", accepted=True)
    store.settle(owed, "duplicate", accepted=True)
    assert store.state() == third.state
    first = third.state
    nothing = store.owe("ask4", [b"reply"], None)
    store.settle(nothing, "accepted", accepted=True)
    assert store.state() == first
    store.close()


def test_sweeping_keeps_the_state_and_what_is_owed(tmp_path):
    store = LocalStore(tmp_path)
    done = store.owe("ask1", [b"reply 1"], [b"state 1"])
    store.settle(done, "accepted", accepted=True)
    owed = store.owe("ask2", [b"reply 2"], [b"state 2"])
    kept = store.spool.put([b"model"])[0]
    gone = store.spool.put([b"old model"])[0]
    store.sweep([kept])
    there = {name for name in (kept, gone, done.digest, store.state(), owed.digest, owed.state)
             if store.spool.has(name)}  # fmt: skip
    assert there == {kept, store.state(), owed.digest, owed.state}
    store.close()
    again = LocalStore(tmp_path)
    assert again.owed("ask2") == owed
    again.close()


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
