"""The ledger of whole runs in one process: in step with the journal, at every crash point."""

import contextlib
import shutil
import sqlite3

import pytest

from openfed.assemble import open_journal
from openfed.errors import OpenFedError, TaskError, UsageError
from openfed.launch.ledger import verified_json, verified_lines, verify_ledger
from openfed.pki.keys import create_identity_key, signer
from openfed.store.audit import read_journal, read_lines, table_faults
from openfed.store.journal import Journal, Reply
from openfed.store.ledger import read_chain, read_entry, story_of
from openfed.store.runs import JOURNAL
from openfed.workspace import Workspace
from tests.unit.node.test_round_policy import Race

KEY = signer(create_identity_key())


def two(lab, **settings):
    return lab({"one": lab.toy(1.0, 10), "two": lab.toy(-0.5, 30)}, **settings)


def judged(path):
    """Everything that is wrong with a journal, its ledger and the two together."""
    lines, tables = read_journal(path)
    entries, wrong = read_chain(lines)
    story, contradictions = story_of(entries)
    return [str(each) for each in (*wrong, *contradictions, *table_faults(story, tables))]


def kinds(path):
    return [read_entry(line).kind for line in read_journal(path)[0]]


def verified(here, **options):
    given = {"path": None, "against": (), "key": None} | options
    return verify_ledger(Workspace(here.root), **given)


def test_a_run_tells_all_its_asks_replies_turns_and_its_end(lab):
    here = two(lab, rounds=2)
    ended = here.run()
    path = here.folder / JOURNAL
    assert judged(path) == []
    one_round = ["ask.opened", "reply.counted", "reply.counted", "ask.closed"]
    assert kinds(path) == [
        "run.begun",
        "turn.committed",
        *2 * [*2 * one_round, "turn.committed"],
        *one_round,
        "run.ended",
    ]
    begun, *_, last = map(read_entry, read_journal(path)[0])
    assert begun.content["model"] == here.lock.model_digest
    assert begun.content["plan"] == here.lock.digest and begun.content["run"] == "r1"
    assert last.content == {
        "state": "completed",
        "code": "",
        "model": ended.summary["model"]["digest"],
    }
    exported = (here.root / "save" / "ledger.jsonl").read_bytes()
    assert exported == b"".join(line + b"\n" for line in read_journal(path)[0])


def test_a_failed_run_tells_the_code_and_nobodys_words(lab):
    here = two(lab, rounds=2)

    def breaks(toy, task):
        raise TaskError("K23", "patient 17")

    here.toys["two"].breaks = breaks
    here.run()
    last = read_entry(read_journal(here.folder / JOURNAL)[0][-1])
    assert (last.content["state"], last.content["code"]) == ("failed", "F01")
    assert judged(here.folder / JOURNAL) == [] and "reply.excluded" in kinds(here.folder / JOURNAL)
    assert b"patient" not in (here.root / "save" / "ledger.jsonl").read_bytes()


def test_a_late_update_is_kept_told_and_counted_in_the_next_round(lab):
    race = Race(lab, "cohort: {quorum: 1, grace: 1s, late: next_round}")
    here, emit = race.here, race.here.emit

    def watching(kind, fields):
        emit(kind, fields)
        if kind == "round.ended":
            race.gone_on.set()

    here.emit = watching
    assert here.run().state == "completed"
    assert judged(here.folder / JOURNAL) == []
    told = kinds(here.folder / JOURNAL)
    assert (told.count("reply.kept"), told.count("late.counted")) == (1, 1)
    found = verified(here)
    assert found.all_faults == ()
    trained = [each.round for each in found.kept[1].included if each.task == "train"]
    assert found.kept[1].collaborator == "two" and trained == [2, 2, 3]


@pytest.mark.parametrize("more", ["", "compression_pipeline: {downlink: [{quantize: {bits: 4}}]}"])
def test_at_every_commit_journal_and_ledger_say_the_same_and_the_chain_goes_on(
    lab, tmp_path, crash_points, more
):
    here = two(lab, rounds=2, more=more)
    points = crash_points(here, tmp_path / "points")
    whole = kinds(here.folder / JOURNAL)
    for point in points:
        path = point / "runs" / "r1" / JOURNAL
        assert judged(path) == []
        before, _ = read_journal(path)
        shutil.copytree(here.root / "save", point / "save")
        here.root, original = point, here.root
        assert here.run().state == "completed"
        here.root = original
        after, _ = read_journal(path)
        assert after[: len(before)] == before and judged(path) == []
        assert sorted(map(str, kinds(path))) == sorted(map(str, whole)), "nothing twice"


def test_what_is_rolled_back_is_not_in_the_ledger_and_its_number_is_used_again(tmp_path):
    journal = Journal(tmp_path / JOURNAL, KEY)
    journal.begin({"run": "r1", "plan_digest": "a" * 64, "status": "running"}, {})
    told = {"cohort": ["one"], "quorum": 1, "payloads": {"model": "b" * 64}}
    journal.open_ask("a", 1, 0, "train", told)
    head = journal.head
    with pytest.raises(RuntimeError), journal.transaction():
        journal.add_reply("a", Reply("one", "d", 1))
        assert journal.head == head, "nobody is told what is not durable"
        raise RuntimeError
    assert journal.head == head and journal.receipt("a", "one") == b""
    with contextlib.suppress(OpenFedError):
        journal.open_ask("b", 1, 0, "train", told)  # its place is taken
    journal.add_reply("a", Reply("one", "d", 1))
    assert journal.head.number == 3
    assert read_entry(journal.receipt("a", "one")).head == journal.head
    journal.close()
    again = Journal(tmp_path / JOURNAL, KEY)
    again.close_ask("a", met=True)
    assert again.head.number == 4 and judged(tmp_path / JOURNAL) == []
    again.close()


def test_a_signed_run_goes_on_with_its_own_key_only(lab):
    here = two(lab)
    open_journal(here.root, "r1", here.lock, KEY).close()
    open_journal(here.root, "r1", here.lock, KEY).close()
    for other in (None, signer(create_identity_key())):
        with pytest.raises(OpenFedError, match="J09"):
            open_journal(here.root, "r1", here.lock, other)
    assert kinds(here.folder / JOURNAL) == ["run.begun"]


def without_ledger(path):
    """As an older version left it."""
    db = sqlite3.connect(path)
    db.execute("drop table ledger")
    db.commit()
    db.close()


def test_a_run_that_was_begun_without_a_ledger_goes_on_with_one(lab, tmp_path, crash_points):
    here = two(lab, rounds=2)
    points = crash_points(here, tmp_path / "points")
    for point in points:
        path = point / "runs" / "r1" / JOURNAL
        without_ledger(path)
        shutil.copytree(here.root / "save", point / "save")
        here.root, original = point, here.root
        assert here.run().state == "completed"
        here.root = original
        assert kinds(path)[0] == "run.adopted" and judged(path) == []


# -- a journal that somebody has edited ------------------------------------------------------------

EDITS = {
    "a reply's digest": ("update replies set digest = '0' where seq = 2", "reply"),
    "a reply refused": ("update replies set code = 'K03' where seq = 2", "reply"),
    "a reply gone": ("delete from replies where seq = 2", "reply"),
    "a reply moved": ("update replies set collaborator = 'three' where seq = 2", "reply"),
    "an ask's task": ("update asks set task = 'validate' where task = 'train'", "ask"),
    "an ask opened again": ("update asks set met = null where round = 1", "ask"),
    "a turn's state": ("update turns set state = '{}' where round = 1", "turn"),
    "a turn gone": ("delete from turns where round = 2", "turn"),
    "the end": ("update facts set value = 'running' where name = 'status'", "the journal says"),
}


@pytest.fixture
def edited(lab):
    def edit(*queries):
        here = two(lab, rounds=2)
        here.run()
        db = sqlite3.connect(here.folder / JOURNAL)
        for query in queries:
            db.execute(query)
        db.commit()
        db.close()
        return here

    return edit


@pytest.mark.parametrize("name", EDITS)
def test_a_table_that_was_edited_is_found(edited, name):
    query, what = EDITS[name]
    here = edited(query)
    found = judged(here.folder / JOURNAL)
    assert found and all(each.startswith(f"J06  {what}") for each in found)
    assert [fault.code for fault in verified(here).faults] == ["J06"] * len(found)


LEDGER_EDITS = {
    "a word": "update ledger set entry = replace(entry, 'train', 'trail') where number = 7",
    "gone": "delete from ledger where number = 7",
    "moved": "update ledger set number = 700 where number = 7",
}


@pytest.mark.parametrize("name", LEDGER_EDITS)
def test_an_entry_that_was_edited_in_the_journal_is_found(edited, name):
    here = edited(LEDGER_EDITS[name])
    (fault,) = verified(here).faults
    assert fault.number == 7 and fault.code == ("J01" if name == "a word" else "J02")


def test_an_end_that_was_cut_off_is_found_by_the_journal_and_by_every_site(edited):
    here = edited("delete from ledger where number > 15")
    found = verified(here)
    assert {fault.code for fault in found.faults} == {"J06"}
    assert [kept.collaborator for kept in found.kept] == ["one", "two"]
    for kept in found.kept:
        assert {fault.code for fault in kept.faults} == {"J05"}


def test_a_ledger_whose_last_entry_is_damaged_stops_the_run_with_a_code(edited):
    here = edited("update ledger set entry = '{' where number = (select max(number) from ledger)")
    with pytest.raises(OpenFedError, match="S10"):
        here.journal()


# -- what people are told --------------------------------------------------------------------------


def test_a_run_without_keys_is_said_to_be_unsigned(lab):
    here = two(lab, rounds=2)
    here.run()
    found = verified(here)
    text = "\n".join(verified_lines(found))
    assert found.all_faults == () and text.endswith("\nok") and "not signed: a run in one" in text
    assert "one: " in text and "updates included in rounds 1-2" in text
    told = verified_json(found)
    assert told["ok"] and told["key"] is None and told["ended"] == "completed"
    assert [len(site["included"]) for site in told["sites"]] == [5, 5]
    assert verified(here, path=here.root / "save" / "ledger.jsonl").all_faults == ()


def test_an_unsigned_ledger_does_not_pass_where_a_key_is_expected(lab):
    here = two(lab, rounds=2)
    here.run()
    found = verified(here, key=KEY.public.hex())
    assert [(fault.code, fault.number) for fault in found.faults] == [("J03", 1)]


def test_an_export_that_was_changed_is_found_beside_its_journal(lab):
    here = two(lab, rounds=1)
    here.run()
    path = here.root / "save" / "ledger.jsonl"
    lines = read_lines(path)
    path.write_bytes(b"\n".join([*lines[:-1], lines[-1].replace(b"completed", b"defeated!")]))
    assert [fault.code for fault in verified(here).faults] == ["J06"]
    assert [fault.code for fault in verified(here, path=path).faults] == ["J01"]
    shutil.copy(path, here.root / "other.jsonl")
    here.run("r2")  # another run's export takes its place
    assert verified(here).all_faults == ()


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\x00\xff", b"{}\n", b"[]\n" * 3])
def test_what_is_no_ledger_is_said(lab, tmp_path, content):
    here, path = two(lab), tmp_path / "file.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="J08"):
        verified(here, path=path)
    (tmp_path / "journal.sqlite").write_bytes(content or b"")
    with pytest.raises(UsageError, match="J08"):
        verified(here, path=tmp_path / "journal.sqlite")


def test_where_there_is_no_run_and_with_a_key_that_is_none_it_says_what_to_do(lab):
    here = two(lab)
    with pytest.raises(UsageError, match="J08  expected a run's journal"):
        verified(here)
    here.run()
    with pytest.raises(UsageError, match="J08  --key: expected 64"):
        verified(here, key="abc")
