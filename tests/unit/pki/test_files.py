"""Keys and certificates on disk: modes, what is kept, what is made again."""

import json
import os
import shutil
import stat
from contextlib import contextmanager

import pytest

from openfed.errors import CertificateError
from openfed.pki.authority import Enrolment, create_authority, issue
from openfed.pki.disk import create_secret
from openfed.pki.files import (
    create_keys,
    ensure_federation,
    load_authority,
    load_identity,
    load_identity_key,
    load_profiles,
    make_request,
    may_issue,
)
from openfed.pki.keys import identity_public, sign, verify
from openfed.pki.leaf import inspect, leaf_hosts
from openfed.pki.office import create_office, open_office
from openfed.pki.request import create_request

NOW = 1_800_000_000.0
DAY = 86400.0


def make(folder, *, hosts=("localhost",), collaborators=("one", "two"), now=NOW, federation="fed"):
    return ensure_federation(folder, federation, hosts, collaborators, now)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(code):
    return pytest.raises(CertificateError, match=f"^{code} ")


@contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def cert(tmp_path):
    make(tmp_path / "cert")
    return tmp_path / "cert"


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path, mask):
    folder = tmp_path / "cert"
    folder.mkdir()
    with umask(mask):
        make(folder)
    modes = {p.relative_to(folder): stat.S_IMODE(p.stat().st_mode) for p in folder.rglob("*")}
    assert {str(p) for p in modes if modes[p] == 0o600} == {
        "authority/authority.key",
        "authority/record.jsonl",
        *(f"{n}/{k}.key" for n in ("aggregator", "one", "two") for k in ("node", "identity")),
    }
    folders = {"authority", "aggregator", "one", "two"}
    assert {str(p) for p in modes if modes[p] == 0o700} == folders
    assert all(mode in (0o600, 0o700, 0o644) for mode in modes.values())


def test_a_new_federation_lists_what_it_wrote(tmp_path):
    written = {str(path.relative_to(tmp_path)) for path in make(tmp_path)}
    assert written == set(contents(tmp_path)) - {"authority/record.jsonl"}
    assert len(written) == 4 + 3 * 4


def test_a_second_time_writes_nothing(cert):
    before = contents(cert)
    assert make(cert) == []
    assert contents(cert) == before


def test_a_new_collaborator_touches_no_other(cert):
    before = contents(cert)
    written = make(cert, collaborators=("one", "two", "three"))
    assert {path.parent.name for path in written} == {"three", "cert"}
    after = contents(cert)
    assert {name for name in before if after[name] != before[name]} == {
        "authority/record.jsonl",
        "roster.json",
    }


def test_new_hosts_give_the_aggregator_a_new_leaf_for_the_same_key(cert):
    key = (cert / "aggregator/node.key").read_bytes()
    written = make(cert, hosts=("localhost", "10.0.0.7"))
    assert [path.name for path in written] == ["node.pem", "chain.pem", "roster.json"]
    assert leaf_hosts((cert / "aggregator/chain.pem").read_bytes()) == {"localhost", "10.0.0.7"}
    assert (cert / "aggregator/node.key").read_bytes() == key
    assert make(cert, hosts=("10.0.0.7", "LOCALHOST")) == []


@pytest.mark.parametrize(("age", "again"), [(14 * DAY, False), (16 * DAY, True), (40 * DAY, True)])
def test_leaves_are_issued_again_after_half_their_life(cert, age, again):
    keys = {n: c for n, c in contents(cert).items() if n.endswith(".key")}
    assert bool(make(cert, now=NOW + age)) == again
    assert load_identity(cert, "one", now=NOW + age).peer.not_after == (
        NOW + 30 * DAY + again * age
    )
    assert {n: c for n, c in contents(cert).items() if n.endswith(".key")} == keys


@pytest.mark.parametrize("lost", ["node.key", "identity.key", "node.pem", "chain.pem"])
def test_what_is_missing_is_made_again(cert, lost):
    (cert / "one" / lost).unlink()
    make(cert)
    assert {path.name for path in (cert / "one").iterdir()} == {
        "node.key",
        "identity.key",
        "node.pem",
        "chain.pem",
    }
    load_identity(cert, "one", now=NOW)


def test_an_authority_whose_key_was_taken_away_is_not_replaced(cert):
    (cert / "authority/authority.key").unlink()
    with refused("C12"):
        make(cert)


def test_the_authority_of_another_federation_is_not_used(cert):
    with refused("C16"):
        make(cert, federation="other")


def test_a_node_of_a_federation_makes_no_authority_of_its_own(cert, tmp_path):
    assert may_issue(cert)
    shutil.rmtree(cert / "authority")
    assert not may_issue(cert)
    before = contents(cert)
    with refused("C34"):
        make(cert)
    assert contents(cert) == before
    imported = tmp_path / "imported"
    imported.mkdir()
    assert may_issue(imported / "cert")
    (imported / "site.yaml").write_text("name: one\n")
    assert not may_issue(imported / "cert")
    with refused("C34"):
        make(imported / "cert")
    assert contents(imported) == {"site.yaml": b"name: one\n"}


def test_keys_that_wait_for_their_certificate_get_none_from_a_trial(tmp_path):
    create_keys(tmp_path / "cert", "one")
    assert not may_issue(tmp_path / "cert")
    with refused("C34"):
        make(tmp_path / "cert")
    create_office(tmp_path / "cert", "fed", NOW)  # the operator may: in any order


def test_starting_a_node_issues_nothing_where_an_operator_keeps_the_authority(cert, tmp_path):
    create_office(tmp_path / "own", "fed", NOW)
    assert not may_issue(tmp_path / "own")
    create_office(cert, "fed", NOW)  # the trial becomes a federation
    assert not may_issue(cert)


def test_a_trial_does_not_take_the_name_of_a_node_on_another_machine(cert, tmp_path):
    office, far = open_office(cert), tmp_path / "far"
    create_keys(far, "three")
    office.certify(make_request(far, "three"), Enrolment("fed", "collaborator", "three"), NOW)
    before = contents(cert)
    with refused("C30"):
        make(cert, collaborators=("three",))
    assert contents(cert) == before


def test_leaves_of_a_minute_are_not_due_at_once(cert):
    (cert / "authority/profile.yaml").write_text(
        "collaborator: {key: P-256, lifetime: 1m, backdate: 10m, usages: [client_auth]}\n"
        "aggregator: {key: P-256, lifetime: 2m, backdate: 10m, usages: [server_auth]}\n"
    )
    make(cert, now=NOW + 20 * DAY)
    assert load_identity(cert, "one", now=NOW + 20 * DAY).peer.not_after == NOW + 20 * DAY + 60
    assert make(cert, now=NOW + 20 * DAY + 20) == []
    assert {path.parent.name for path in make(cert, now=NOW + 20 * DAY + 35)} == {
        "cert",
        "one",
        "two",
    }


def test_an_expired_authority_is_named(cert):
    with refused("C14"):
        make(cert, now=NOW + 6 * 365 * DAY)


def test_an_identity_is_loaded_and_hides_its_key(cert):
    identity = load_identity(cert, "one", federation="fed", role="collaborator", now=NOW)
    assert (identity.peer.federation, identity.peer.role, identity.peer.name) == (
        "fed",
        "collaborator",
        "one",
    )
    assert b"PRIVATE KEY" in identity.key_pem
    assert "PRIVATE" not in repr(identity)


@pytest.mark.parametrize(
    ("code", "asked"),
    [
        ("C16", {"federation": "other"}),
        ("C09", {"role": "aggregator"}),
        ("C05", {"now": NOW + 31 * DAY}),
        ("C06", {"now": NOW - DAY}),
    ],
)
def test_an_identity_that_does_not_fit_is_refused(cert, code, asked):
    with refused(code):
        load_identity(cert, "one", **({"now": NOW} | asked))


def test_folders_that_were_swapped_are_noticed(cert):
    for name in ("node.key", "chain.pem"):
        shutil.copyfile(cert / "two" / name, cert / "one" / name)
    with refused("C08"):
        load_identity(cert, "one", now=NOW)


def test_a_key_of_another_certificate_is_noticed(cert):
    shutil.copyfile(cert / "two/node.key", cert / "one/node.key")
    with refused("C10"):
        load_identity(cert, "one", now=NOW)


@pytest.mark.parametrize(
    ("path", "mode"),
    [("one/node.key", 0o640), ("one/node.key", 0o604), ("one", 0o750), ("one", 0o1777)],
)
def test_looser_modes_are_refused_and_the_message_says_what_to_run(cert, path, mode):
    (cert / path).chmod(mode)
    with refused("C11") as caught:
        load_identity(cert, "one", now=NOW)
    assert "chmod" in caught.value.message
    with refused("C11"):
        make(cert)


def test_a_loose_authority_issues_nothing(cert):
    (cert / "authority/authority.key").chmod(0o644)
    with refused("C11"):
        load_authority(cert)


def test_links_are_not_followed_to_keys(cert, tmp_path):
    (cert / "one/node.key").rename(tmp_path / "stolen.key")
    (cert / "one/node.key").symlink_to(tmp_path / "stolen.key")
    with refused("C11"):
        load_identity(cert, "one", now=NOW)
    (cert / "two").rename(tmp_path / "elsewhere")
    (cert / "two").symlink_to(tmp_path / "elsewhere")
    with refused("C11"):
        load_identity(cert, "two", now=NOW)


def test_a_key_is_never_overwritten(cert):
    path = cert / "one/node.key"
    before = path.read_bytes()
    with refused("C13"):
        create_secret(path, b"another")
    assert path.read_bytes() == before
    assert not [p for p in path.parent.iterdir() if p.name.startswith(".")]


def test_a_planted_link_is_not_written_through(tmp_path, cert):
    target = tmp_path / "target"
    (cert / "three").mkdir(mode=0o700)
    (cert / "three/node.key").symlink_to(target)  # dangling: open would create its target
    with refused("C13"):
        make(cert, collaborators=("three",))
    assert not target.exists()


@pytest.mark.parametrize("name", ["../one", "authority", "", "a/b"])
def test_names_that_leave_the_folder_are_refused(cert, name):
    with refused("C04"):
        load_identity(cert, name, now=NOW)
    with refused("C04"):
        make(cert, collaborators=(name,))


def test_a_missing_identity_is_named(cert):
    with refused("C12") as caught:
        load_identity(cert, "nobody", now=NOW)
    assert "nobody" in caught.value.message


def test_what_was_issued_is_recorded_line_by_line(cert):
    make(cert, hosts=("other.example",))
    text = (cert / "authority/record.jsonl").read_text()
    created, *lines = [json.loads(line) for line in text.splitlines()]
    assert (created["event"], created["how"]) == ("created", "trial")
    assert [(line["role"], line["name"], line["hosts"]) for line in lines] == [
        ("aggregator", "aggregator", ["localhost"]),
        ("collaborator", "one", []),
        ("collaborator", "two", []),
        ("aggregator", "aggregator", ["other.example"]),
    ]
    shown = inspect((cert / "one/node.pem").read_bytes())
    assert int(lines[1]["serial"], 16) == shown.serial
    public = identity_public(load_identity_key(cert, "one"))
    assert bytes.fromhex(lines[1]["identity"]) == public
    assert verify(public, b"receipt", sign(load_identity_key(cert, "one"), b"receipt"))


def test_a_leaf_of_another_authority_is_noticed_and_replaced(cert):
    foreign = create_authority("fed", NOW)
    key, identity = (cert / "one/node.key").read_bytes(), load_identity_key(cert, "one")
    enrolment = Enrolment("fed", "collaborator", "one")
    profile = load_profiles()["collaborator"]
    leaf = issue(foreign, create_request("one", key, identity), enrolment, profile, NOW)
    (cert / "one/chain.pem").write_bytes(leaf)
    with refused("C07"):
        load_identity(cert, "one", now=NOW)
    assert {path.name for path in make(cert)} == {"node.pem", "chain.pem", "roster.json"}
    load_identity(cert, "one", now=NOW)
