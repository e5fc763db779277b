"""Certificates by hand, command by command, as operators of an OpenFL federation type them."""

import json
import os
import pty
import shutil
import stat
import sys
import zipfile
from contextlib import contextmanager

import pytest
from cryptography import x509

from openfed.archive import pack
from openfed.cli.main import main
from openfed.pki.files import load_identity, load_roster
from openfed.pki.leaf import inspect, leaf_hosts
from openfed.workspace import create

SITES = ("agg", "site", "other")
REQUEST = "col_one_to_agg_cert_request.zip"
GRANTED = "agg_to_col_one_signed_cert.zip"


@pytest.fixture
def fed(tmp_path, monkeypatch):
    """Runs `fx` in a folder of its own per machine: (exit code, stdout, stderr)."""
    create(tmp_path / "agg", "torch_digits")
    for name in SITES[1:]:
        shutil.copytree(tmp_path / "agg", tmp_path / name)
    return Fed(tmp_path, monkeypatch)


class Fed:
    def __init__(self, root, monkeypatch):
        self.root, self._monkeypatch = root, monkeypatch
        self.capsys = None

    def __call__(self, where, *arguments, code=0):
        self._monkeypatch.chdir(self.root / where)
        with pytest.raises(SystemExit) as left:
            main(arguments)
        said = self.capsys.readouterr()
        assert left.value.code == code, said.err
        return said.out if code == 0 else said.err

    def carry(self, name, start, end):
        shutil.copy(self.root / start / name, self.root / end / name)

    def cert(self, where):
        return self.root / where / "cert"


@pytest.fixture(autouse=True)
def seen(fed, capsys):
    fed.capsys = capsys


@pytest.fixture
def ready(fed):
    """An authority, and an aggregator with a certificate."""
    fed("agg", "workspace", "certify")
    fed("agg", "aggregator", "generate-cert-request", "--fqdn", "agg.example")
    fed("agg", "aggregator", "certify", "--fqdn", "agg.example", "--silent")
    return fed


def enrol(fed, site="site", name="one", *more):
    asked = fed(site, "collaborator", "generate-cert-request", "-n", name, "--silent")
    package = f"col_{name}_to_agg_cert_request.zip"
    fed.carry(package, site, "agg")
    certify = ("collaborator", "certify", "--request-pkg", package, "--silent")
    certified = fed("agg", *certify, *more)
    back = f"agg_to_col_{name}_signed_cert.zip"
    fed.carry(back, "agg", site)
    return asked, certified, fed(site, "collaborator", "certify", "--import", back)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def fingerprints(text):
    return [word for word in text.split() if word.startswith("sha256:")]


def test_the_sequence_of_openfl_ends_with_certificates_on_both_sides(ready):
    asked, certified, imported = enrol(ready)
    authority = ready("agg", "pki", "fingerprint").strip()
    assert fingerprints(asked)[0] == fingerprints(certified)[0]
    assert fingerprints(certified)[1] == authority == fingerprints(imported)[0]
    assert ready("site", "pki", "fingerprint").strip() == authority
    assert load_identity(ready.cert("site"), "one", role="collaborator")
    assert leaf_hosts((ready.cert("agg") / "aggregator/chain.pem").read_bytes()) == {"agg.example"}
    assert load_roster(ready.cert("site")).identity("one")
    for said, file in ((asked, REQUEST), (certified, GRANTED), (certified, "cert/roster.json")):
        assert file in said
    assert not (ready.cert("site") / "authority").exists()


def test_packages_hold_no_secret_and_are_for_everyone(ready):
    before = os.umask(0o077)
    try:
        enrol(ready)
    finally:
        os.umask(before)
    for name, holds in (
        (REQUEST, {"request.json"}),
        (GRANTED, {"chain.pem", "authority.pem", "roster.json"}),
    ):
        path = ready.root / "agg" / name
        with zipfile.ZipFile(path) as archive:
            assert set(archive.namelist()) == holds
            assert not any(b"PRIVATE" in archive.read(each) for each in holds)
    assert stat.S_IMODE((ready.root / "agg" / GRANTED).stat().st_mode) == 0o644
    assert stat.S_IMODE((ready.root / "site" / REQUEST).stat().st_mode) == 0o644


def test_every_step_can_be_repeated_and_keeps_the_keys(ready):
    asked, certified, _ = enrol(ready)
    keys = {
        place: content
        for where in ("agg", "site")
        for place, content in contents(ready.cert(where)).items()
        if place.endswith(".key")
    }
    assert "as it was" in ready("agg", "workspace", "certify")
    ready("agg", "aggregator", "generate-cert-request")
    ready("agg", "aggregator", "certify", "--silent")  # the host of the request is remembered
    assert leaf_hosts((ready.cert("agg") / "aggregator/chain.pem").read_bytes()) == {"agg.example"}
    again, once_more, _ = enrol(ready)
    assert fingerprints(again) == fingerprints(asked)
    assert fingerprints(once_more) == fingerprints(certified)
    for where in ("agg", "site"):
        for place, content in contents(ready.cert(where)).items():
            assert keys.get(place, content) == content


def test_without_an_answer_to_hosts_the_plan_says_them(fed):
    fed("agg", "workspace", "certify")
    said = fed("agg", "aggregator", "certify", "--silent")
    assert "reached at localhost" in said
    assert leaf_hosts((fed.cert("agg") / "aggregator/chain.pem").read_bytes()) == {"localhost"}


def test_nobody_is_asked_without_a_terminal(ready):
    before = contents(ready.cert("agg"))
    assert "C41" in ready("agg", "aggregator", "certify", code=3)
    ready("site", "collaborator", "generate-cert-request", "-n", "one")
    ready.carry(REQUEST, "site", "agg")
    said = ready("agg", "collaborator", "certify", "--request-pkg", REQUEST, code=3)
    assert "C41" in said and "--silent" in ready("agg", "explain", "C41")
    assert contents(ready.cert("agg")) == before
    assert not (ready.root / "agg" / GRANTED).exists()


def test_another_site_under_the_same_name_is_refused(ready):
    enrol(ready)
    ready("other", "collaborator", "generate-cert-request", "-n", "one", "--silent")
    ready.carry(REQUEST, "other", "agg")
    before = contents(ready.cert("agg"))
    certify = ("collaborator", "certify", "--request-pkg", REQUEST, "--silent")
    assert "C30" in ready("agg", *certify, code=3)
    assert contents(ready.cert("agg")) == before
    ready("agg", "pki", "revoke", "-n", "one")
    ready("agg", *certify)


def test_a_package_is_imported_where_its_request_was_made_only(ready):
    enrol(ready)
    before = contents(ready.root / "other")
    ready.carry(GRANTED, "agg", "other")
    said = ready("other", "collaborator", "certify", "--import", GRANTED, code=3)
    assert "C12" in said and "request was made" in said
    ready("other", "collaborator", "generate-cert-request", "-n", "one", "--silent")
    assert "C10" in ready("other", "collaborator", "certify", "--import", GRANTED, code=3)
    after = contents(ready.root / "other")
    assert {k for k in after.keys() - before.keys()} == {
        REQUEST,
        GRANTED,
        "cert/one/node.key",
        "cert/one/identity.key",
    }


def test_a_package_that_came_from_another_authority_is_refused(ready):
    enrol(ready)
    before = contents(ready.cert("site"))
    shutil.rmtree(ready.cert("agg"))
    ready("agg", "workspace", "certify")
    certify = ("collaborator", "certify", "--request-pkg", REQUEST, "--silent")
    ready("agg", *certify)
    ready.carry(GRANTED, "agg", "site")
    assert "C38" in ready("site", "collaborator", "certify", "--import", GRANTED, code=3)
    assert contents(ready.cert("site")) == before


def test_a_package_with_a_bad_roster_installs_nothing(ready):
    enrol(ready)
    with zipfile.ZipFile(ready.root / "agg" / GRANTED) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (ready.root / "site/bad.zip").write_bytes(pack(parts | {"roster.json": b"{}"}))
    for name in ("chain.pem", "node.pem"):
        (ready.cert("site") / "one" / name).unlink()
    before = contents(ready.cert("site"))
    assert "C37" in ready("site", "collaborator", "certify", "--import", "bad.zip", code=3)
    assert contents(ready.cert("site")) == before


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("C40", {"csr": 5}),
        ("C40", {"identity": "zz"}),
        ("C40", {"federation": "other"}),
        ("C40", {"role": "aggregator"}),
        ("C40", {"name": None}),
        ("C04", {"name": "../up"}),
        ("C30", {"name": "aggregator"}),
        ("C01", {"csr": "-----BEGIN"}),
        ("C03", {"signature": "00"}),
    ],
)
def test_a_request_that_was_changed_is_refused_and_leaves_no_trace(ready, code, change):
    ready("site", "collaborator", "generate-cert-request", "-n", "one", "--silent")
    with zipfile.ZipFile(ready.root / "site" / REQUEST) as archive:
        told = json.loads(archive.read("request.json"))
    (ready.root / "agg/changed.zip").write_bytes(
        pack({"request.json": json.dumps(told | change).encode()})
    )
    before = contents(ready.root / "agg")
    certify = ("collaborator", "certify", "--request-pkg", "changed.zip", "--silent")
    assert code in ready("agg", *certify, code=3)
    assert contents(ready.root / "agg") == before


def test_files_that_are_no_packages_are_refused_in_a_sentence(ready):
    (ready.root / "agg/junk.zip").write_bytes(b"junk")
    for way in ("--request-pkg", "--import"):
        for file in ("junk.zip", "nowhere.zip"):
            said = ready("agg", "collaborator", "certify", way, file, "--silent", code=2)
            assert file in said and "Traceback" not in said
    ready("agg", "collaborator", "certify", code=2)


def test_a_request_names_what_it_is_for_in_its_fingerprint(ready):
    first = fingerprints(ready("site", "collaborator", "generate-cert-request", "-n", "one"))
    shutil.move(ready.cert("site") / "one", ready.cert("site") / "two")
    second = fingerprints(ready("site", "collaborator", "generate-cert-request", "-n", "two"))
    assert first != second  # the same keys, under another name


def test_a_nodes_workspace_makes_no_authority(ready):
    enrol(ready)
    assert "C34" in ready("site", "workspace", "certify", code=3)
    (ready.root / "other/site.yaml").write_text("name: two\n")
    assert "C34" in ready("other", "workspace", "certify", code=3)
    assert not ready.cert("site").joinpath("authority").exists()


def test_the_list_says_who_is_enrolled(ready):
    enrol(ready)
    told = json.loads(ready("agg", "pki", "list", "--json").splitlines()[-1])
    rows = {row["name"]: row for row in told["nodes"]}
    assert set(rows) == {"aggregator", "one"}
    shown = inspect((ready.cert("site") / "one/chain.pem").read_bytes())
    assert rows["one"]["serial"] == f"{shown.serial:032x}"
    assert 29.9 < rows["one"]["days_left"] <= 30 and rows["one"]["state"] == "valid"
    assert rows["aggregator"]["hosts"] == ["agg.example"]
    ready("agg", "pki", "revoke", "-n", "one", "--reason", "laptop stolen")
    text = ready("agg", "pki", "list")
    assert "revoked: laptop stolen" in text and "aggregator" in text
    assert "C32" in ready("agg", "pki", "revoke", "-n", "nobody", code=3)


def test_the_revoked_are_on_the_list_for_outsiders(ready):
    enrol(ready)
    ready("agg", "pki", "revoke", "-n", "one")
    ready("agg", "pki", "crl", "-o", "revoked.pem")
    crl = x509.load_pem_x509_crl((ready.root / "agg/revoked.pem").read_bytes())
    shown = inspect((ready.cert("site") / "one/chain.pem").read_bytes())
    assert [each.serial_number for each in crl] == [shown.serial]
    assert x509.load_pem_x509_crl(ready("agg", "pki", "crl").encode())


def test_a_new_host_is_one_command(ready):
    plan = ready.root / "agg/plan/plan.yaml"
    text = plan.read_text()
    assert "advertise: [localhost]" in text
    plan.write_text(
        text.replace("[localhost]", "[new.example, 10.0.0.7]").replace("127.0.0.1", "0.0.0.0")
    )
    key = (ready.cert("agg") / "aggregator/node.key").read_bytes()
    ready("agg", "pki", "renew", "-n", "aggregator")
    assert leaf_hosts((ready.cert("agg") / "aggregator/chain.pem").read_bytes()) == {
        "new.example",
        "10.0.0.7",
    }
    assert (ready.cert("agg") / "aggregator/node.key").read_bytes() == key
    enrol(ready)
    assert "C12" in ready("agg", "pki", "renew", "-n", "one", code=3)  # its keys are elsewhere


def test_a_root_is_replaced_while_sites_come_one_by_one(ready):
    enrol(ready)
    old = ready("site", "pki", "fingerprint")
    ready("agg", "pki", "roll-over")
    new = ready("agg", "pki", "fingerprint")
    assert new != old
    ready("agg", "pki", "renew", "-n", "aggregator")
    said = ready("agg", "pki", "roll-over", "--finish", code=3)
    assert "C39" in said and "one" in said
    enrol(ready)
    assert ready("site", "pki", "fingerprint") == new
    ready("agg", "pki", "roll-over", "--finish")
    assert ready("agg", "pki", "fingerprint") == new
    ready("agg", "pki", "roll-over", "--force", code=2)


def test_an_enrolment_may_have_an_end(ready):
    enrol(ready, "site", "one", "--until", "2999-12-31")
    told = json.loads(ready("agg", "pki", "list", "--json"))
    assert {row["name"]: row["until"] for row in told["nodes"]}["one"] == 32503680000.0
    ready("other", "collaborator", "generate-cert-request", "-n", "two", "--silent")
    ready.carry("col_two_to_agg_cert_request.zip", "other", "agg")
    package = ("--request-pkg", "col_two_to_agg_cert_request.zip", "--until", "2020-01-01")
    assert "C33" in ready("agg", "collaborator", "certify", *package, "--silent", code=3)


def test_a_passphrase_from_a_file_opens_the_authority(fed):
    (fed.root / "agg/word").write_text("horse staple\n")
    (fed.root / "agg/wrong").write_text("donkey\n")
    (fed.root / "agg/empty").write_text("\n")
    fed("agg", "workspace", "certify", "--passphrase-file", "word")
    fed("agg", "workspace", "certify", "--passphrase-file", "word")
    assert b"ENCRYPTED" in (fed.cert("agg") / "authority/authority.key").read_bytes()
    certify = ("aggregator", "certify", "--silent")
    assert "C15" in fed("agg", *certify, code=3)
    assert "C15" in fed("agg", *certify, "--passphrase-file", "wrong", code=3)
    assert "C42" in fed("agg", *certify, "--passphrase-file", "empty", code=3)
    assert "horse" not in fed("agg", *certify, "--passphrase-file", "word")
    fed("agg", "pki", "list")  # reading takes no passphrase


# -- at a terminal ------------------------------------------------------------------------------


@contextmanager
def at_a_terminal(folder, *arguments):
    """`fx` with a terminal of its own; yields its descriptor."""
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(folder)
        os.execv(sys.executable, [sys.executable, "-m", "openfed", *arguments])
    try:
        yield terminal, pid
    finally:
        os.close(terminal)


def until(terminal, text):
    """What is shown up to `text`, or to the end."""
    shown = b""
    while text is None or text.encode() not in shown:
        try:
            part = os.read(terminal, 1024)
        except OSError:  # how a terminal says that nobody is left at its other end
            break
        if not part:
            break
        shown += part
    return shown.decode()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 3)])
def test_an_operator_compares_fingerprints_and_answers(ready, answer, code):
    asked = ready("site", "collaborator", "generate-cert-request", "-n", "one")
    ready.carry(REQUEST, "site", "agg")
    certify = ("collaborator", "certify", "--request-pkg", REQUEST)
    with at_a_terminal(ready.root / "agg", *certify) as (terminal, pid):
        shown = until(terminal, "[y/N]")
        assert fingerprints(asked)[0] in shown and "collaborator one" in shown
        os.write(terminal, answer.encode() + b"\n")
        until(terminal, None)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert (ready.root / "agg" / GRANTED).exists() == (code == 0)


def test_a_passphrase_is_typed_twice_and_never_shown(fed):
    with at_a_terminal(fed.root / "agg", "workspace", "certify") as (terminal, pid):
        shown = until(terminal, "for none)")
        os.write(terminal, b"horse\n")
        shown += until(terminal, "epeat")
        os.write(terminal, b"horse\n")
        shown += until(terminal, None)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "horse" not in shown and "fingerprint" in shown
    with at_a_terminal(fed.root / "agg", "aggregator", "certify", "--silent") as (terminal, pid):
        shown = until(terminal, "Passphrase of the authority")
        os.write(terminal, b"horse\n")
        shown += until(terminal, None)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert "horse" not in shown
