"""The checker finds what is planted in the files of a sound run."""

import json
import shutil
import sqlite3

import numpy as np
import pytest

from openfed.tensors.model_file import read_model, write_model
from tests.faults.check import Ran, violations
from tests.faults.federation import free_port, prepare
from tests.faults.schedule import SITES

ROUNDS = 3


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound") / "w"
    return prepare(root, "whole", free_port(), ROUNDS, weights=500)


@pytest.fixture
def ran(sound, tmp_path):
    """A copy of the sound run, to be spoilt."""
    ignored = shutil.ignore_patterns("*.sock")
    root = shutil.copytree(sound.root, tmp_path / "w", ignore=ignored)
    return Ran(root, dict.fromkeys(SITES, root), sound.digest)


def test_a_sound_run_violates_nothing(ran):
    assert violations(ran) == []
    assert ran.rounds == ROUNDS


def change(path, *queries):
    db = sqlite3.connect(path)
    with db:
        for query in queries:
            assert db.execute(query).rowcount, f"{query} changed nothing"
    db.close()


def in_journal(*queries):
    return lambda ran: change(ran.folder / "journal.sqlite", *queries)


TRAINED = "(select id from asks where task = 'train' and round = 2)"
MILLS = f"collaborator = 'mill' and ask = {TRAINED}"


def packet(ran):
    db = sqlite3.connect(ran.folder / "journal.sqlite")
    (digest,) = db.execute(f"select digest from replies where {MILLS}").fetchone()
    db.close()
    return ran.folder / "blobs" / f"mill.{digest}"


def a_byte_changed(ran):
    path = packet(ran)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def other_weight(ran):
    """Another number of samples, and all digests as they should be then, but for the model's."""
    path = packet(ran)
    data = path.read_bytes()
    assert data.count(b'"n":[20.0]') == 1
    from blake3 import blake3

    data = data.replace(b'"n":[20.0]', b'"n":[30.0]')
    digest = blake3(data).hexdigest()
    path.with_name(f"mill.{digest}").write_bytes(data)
    change(ran.folder / "journal.sqlite", f"update replies set digest = '{digest}' where {MILLS}")


def twice(ran):
    """The table forbids it: so it is made anew, without its rules."""
    db = sqlite3.connect(ran.folder / "journal.sqlite")
    db.executescript(
        f"""create table again as select * from replies;
        insert into again select * from replies where {MILLS};
        drop table replies; alter table again rename to replies;"""
    )
    db.close()


def once_more_later(ran):
    """Mill's update of round 2 counts in round 3 as well."""
    db = sqlite3.connect(ran.folder / "journal.sqlite")
    query = f"select collaborator, digest, size from replies where {MILLS}"
    told = json.dumps([db.execute(query).fetchone()])
    with db:
        db.execute("insert into notes (key, value) values ('late/00000003', ?)", (told,))
    db.close()


def swapped(ran):
    """Rounds 2 and 3 have each other's model."""
    db = sqlite3.connect(ran.folder / "journal.sqlite")
    rows = dict(db.execute("select round, state from turns where round in (2, 3)"))
    with db:
        for round, other in ((2, 3), (3, 2)):
            db.execute("update turns set state = ? where round = ?", (rows[other], round))
    db.close()


def other_model(ran):
    path = ran.aggregator / "save" / "faults_last.safetensors"
    model = {name: np.array(x) for name, x in read_model(path).items()}
    model["bias"][0] = np.nextafter(model["bias"][0], 1.0)
    write_model(path, model)


def other_manifest(ran):
    path = ran.aggregator / "save" / "manifest.json"
    told = json.loads(path.read_text())
    told["models"]["last"]["digest"] = "0" * 64
    path.write_text(json.dumps(told))


def accepted_at_the_site(ran):
    """The site was told that another update of its own counts."""
    store = ran.folder / "agents" / "mill" / "local.sqlite"
    change(store, f"update replies set digest = '{'0' * 64}' where rowid = 2")


def late_at_the_site(ran):
    store = ran.folder / "agents" / "mill" / "local.sqlite"
    change(store, "update replies set ruling = 'late' where rowid = 2")


def damaged(ran):
    """The journal's second page is of another file."""
    path = ran.folder / "journal.sqlite"
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\1" * 4096
    path.write_bytes(data)


PLANTED = {
    # what: (how, the invariant that names it)
    "an accepted reply is called failed": (
        in_journal(f"update replies set code = 'K26' where {MILLS}"),
        "the formula",
    ),
    "too few replies are called a quorum": (
        in_journal(f"update replies set code = 'K26' where {MILLS}"),
        "quorum",
    ),
    "a quorum is called too few": (
        in_journal(f"update asks set met = 0 where id = {TRAINED}"),
        "quorum",
    ),
    "an ask is open": (in_journal(f"update asks set met = null where id = {TRAINED}"), "quorum"),
    "a reply is dropped": (in_journal(f"delete from replies where {MILLS}"), "the formula"),
    "a reply counts twice": (twice, "counts once"),
    "a reply of nobody's": (
        in_journal(f"update replies set collaborator = 'moor' where {MILLS}"),
        "counts once",
    ),
    "a reply of another ask": (
        in_journal(f"update replies set ask = 'none' where {MILLS}"),
        "counts once",
    ),
    "a reply counts again a round later": (once_more_later, "counts once"),
    "a packet is gone": (lambda ran: packet(ran).unlink(), "the formula"),
    "a packet is changed": (a_byte_changed, "the formula"),
    "a weight is changed": (other_weight, "the formula"),
    "two models are swapped": (swapped, "the formula"),
    "a round is missing": (in_journal("delete from turns where round = 2"), "rounds only rise"),
    "the last round is missing": (
        in_journal(f"delete from turns where round = {ROUNDS}"),
        "rounds only rise",
    ),
    "an ask is missing": (
        in_journal("delete from asks where round = 2 and ordinal = 0"),
        "rounds only rise",
    ),
    "the run has no end": (
        in_journal("update facts set value = 'running' where name = 'status'"),
        "one terminal status",
    ),
    "the run failed for no reason": (
        in_journal("update facts set value = 'failed' where name = 'status'"),
        "one terminal status",
    ),
    "the saved model is another": (other_model, "the saved model"),
    "the manifest tells of another": (other_manifest, "the saved model"),
    "a site was told of another update": (accepted_at_the_site, "receipts"),
    "a site was told that it was late": (late_at_the_site, "receipts"),
    "an entry of the ledger is gone": (
        in_journal("delete from ledger where rowid = 5"),
        "the ledger",
    ),
    "half a blob": (lambda ran: (ran.folder / "growing" / "half").touch(), "no partial files"),
    "half a file": (
        lambda ran: (ran.aggregator / "save" / ".faults_last.safetensors.0").touch(),
        "no partial files",
    ),
    "a damaged journal": (damaged, "journal"),
    "no journal": (lambda ran: (ran.folder / "journal.sqlite").unlink(), "journal"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_is_found(ran, what):
    plant, invariant = PLANTED[what]
    plant(ran)
    assert invariant in {violation.invariant for violation in violations(ran)}


def test_another_model_than_the_undisturbed_one_is_found(ran):
    (found,) = violations(Ran(ran.aggregator, ran.sites, "0" * 64))
    assert found.invariant == "the undisturbed model" and "0000000000000000" in str(found)
