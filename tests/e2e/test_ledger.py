"""`fx ledger verify` on runs over mTLS: undisturbed, killed, edited, put back, rewritten."""

import json
import shutil
import signal
import sqlite3

import pytest

from openfed.pki.files import load_identity_key
from openfed.pki.keys import identity_public, signer
from openfed.store.ledger import NOTHING, following, read_entry


def verify(here, *words, code=0):
    ran = here.fx("ledger", "verify", *map(str, words), "--json")
    assert ran.returncode == code, ran.stdout + ran.stderr
    return json.loads(ran.stdout)


def journal(here):
    (path,) = (here.root / "runs").glob("*/journal.sqlite")
    return path


def kept(here, name):
    (path,) = (here.root / "runs").glob(f"*/agents/{name}/ledger.jsonl")
    return path


def query(here, text):
    db = sqlite3.connect(journal(here))
    found = db.execute(text).fetchall()
    db.commit()
    db.close()
    return found


def start(here):
    """Three nodes, in round 3; the aggregator is killed."""
    assert here.fx("plan", "initialize").returncode == 0
    aggregator = here.start("aggregator", "start")
    sites = [here.start("collaborator", "start", "-n", name) for name in ("farm", "mill")]
    here.wait_until(lambda: here.calls("mill") == 3, "round 3 at mill")
    aggregator.send_signal(signal.SIGKILL)
    aggregator.wait()
    return sites


@pytest.mark.slow
def test_a_killed_aggregator_goes_on_with_one_chain_that_every_site_confirms(workspace, tmp_path):
    here = workspace.line()
    sites = start(here)
    before = query(here, "select entry from ledger order by number")
    assert "run has not" not in here.fx("ledger", "verify").stdout
    again = here.start("aggregator", "start")
    here.go()
    for node in (again, *sites):
        assert node.wait(60) == 0, here.said(node)
    after = query(here, "select entry from ledger order by number")
    assert after[: len(before)] == before and len(after) > len(before) > 10
    kinds = [json.loads(line)["kind"] for (line,) in after]
    assert (kinds.count("run.begun"), kinds.count("run.ended")) == (1, 1)

    found = verify(here)
    assert found["ok"] and found["ended"] == "completed" and found["rounds"] == 5
    assert found["key_by"] == "cert/roster.json"
    for site, name in zip(found["sites"], ("farm", "mill"), strict=True):
        trained = [each for each in site["included"] if each["task"] == "train"]
        assert [each["round"] for each in trained] == [1, 2, 3, 4, 5]
        assert site["collaborator"] == name and all(each["accepted"] for each in trained)
        assert site["heads"] > 2
    elsewhere = workspace.copy(here.root / "save")  # at a site: a file, its own, and a key
    shutil.copy(kept(here, "farm"), elsewhere.root / "mine.jsonl")
    key = identity_public(load_identity_key(here.root / "cert", "aggregator")).hex()
    words = ("ledger.jsonl", "--against", "mine.jsonl", "--key", key)
    assert verify(elsewhere, *words)["sites"][0]["collaborator"] == "farm"
    other = verify(elsewhere, *words[:-1], "0" * 64, code=1)
    assert {fault["code"] for fault in other["faults"]} == {"J03"}


@pytest.mark.slow
def test_a_ledger_that_was_put_back_stops_the_sites(workspace):
    here = workspace.line()
    farm, mill = start(here)
    query(here, "delete from ledger where number > 6")
    here.start("aggregator", "start")
    for site in (farm, mill):
        assert site.wait(60) == 4
        assert "J05  " in here.said(site)  # shorter than it was, or another one
    assert verify(here, code=1)["sites"][0]["faults"][0]["code"] == "J05"


@pytest.fixture
def finished(trained, workspace):
    """A copy of a workspace in which a run has ended."""
    return workspace.copy(trained[0].root)


def test_an_edited_journal_is_found_and_said_in_words(finished):
    query(finished, "update ledger set entry = replace(entry, '\"train\"', '\"trial\"') "
          "where number = 7")  # fmt: skip
    query(finished, "update replies set digest = 'x' where seq = 1")
    ran = finished.fx("ledger", "verify")
    assert ran.returncode == 1 and "Traceback" not in ran.stdout + ran.stderr
    assert "J01  entry 7 (ask.opened): its content has the hash" in ran.stdout
    assert ran.stdout.endswith("not to be trusted\n")


def rewritten(here, number):
    """What the aggregator itself can write: another history from an entry on, signed."""
    sign = signer(load_identity_key(here.root / "cert", "aggregator")).sign
    entries = [read_entry(line) for line in (here.root / "save/ledger.jsonl").read_bytes().split()]
    begun, head = entries[0].content, NOTHING
    for entry in entries:
        content = {**entry.content, "note": "x"} if entry.number == number else entry.content
        told = (entry.kind, content, begun["run"], begun["plan"], sign)
        new = following(head, entry.at, *told)
        head = new.head
        yield new.line()


@pytest.mark.parametrize("number", [4, 60])
def test_a_history_that_the_aggregator_has_rewritten_is_found_by_what_the_sites_keep(
    finished, number
):
    path = finished.root / "other.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in rewritten(finished, number)))
    found = verify(finished, path, code=1)
    assert found["faults"] and {fault["code"] for fault in found["faults"]} == {"J05"}
    for site in found["sites"]:
        first = min(fault["number"] for fault in site["faults"])
        assert number <= first <= number + 8, "what was told before it still fits"
    shutil.rmtree(finished.root / "runs")
    alone = verify(finished, path)  # nobody else's word: it is whole, and signed
    assert alone["ok"] and not alone["sites"]


def test_what_people_type_wrong_is_answered(workspace):
    here = workspace()
    ran = here.fx("ledger", "verify")
    assert ran.returncode == 2 and ran.stderr.startswith("J08  expected a run's journal")
    ran = here.fx("ledger", "verify", "plan/plan.yaml")
    assert ran.returncode == 2 and ran.stderr.startswith("J08  plan/plan.yaml: expected a ledger")
    for code in ("J01", "J05", "J09"):
        assert here.fx("explain", code).returncode == 0
