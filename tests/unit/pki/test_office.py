"""The authority's office: who gets what, what is on record, who is out, and a new root."""

import json
import os
import socket
import ssl
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from openfed.errors import CertificateError
from openfed.pki.authority import Enrolment, create_authority
from openfed.pki.files import (
    create_keys,
    ensure_federation,
    install,
    install_roster,
    load_identity,
    load_identity_key,
    load_roster,
    make_request,
)
from openfed.pki.keys import create_identity_key, create_key, identity_public, sign
from openfed.pki.leaf import check_leaf, inspect, leaf_hosts, read_certificate, read_certificates
from openfed.pki.office import create_office, open_office
from openfed.pki.peer import Peer
from openfed.pki.request import _SIGNED, Request, create_request
from openfed.pki.roster import read_roster

NOW = 1_800_000_000.0
DAY = 86400.0
SERVER = Enrolment("fed", "aggregator", "aggregator", ("agg.example", "127.0.0.1"))
ONE, TWO = (Enrolment("fed", "collaborator", name) for name in ("one", "two"))


def refused(code):
    return pytest.raises(CertificateError, match=f"^{code} ")


@contextmanager
def umask(value):
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def cert(tmp_path):
    create_office(tmp_path / "cert", "fed", NOW)
    return tmp_path / "cert"


@pytest.fixture
def office(cert):
    return open_office(cert)


class Site:
    """A node's folder on another machine."""

    def __init__(self, folder, name):
        self.cert, self.name = folder / name, name
        create_keys(self.cert, name)

    def request(self):
        return make_request(self.cert, self.name)

    def install(self, chain, office, now=NOW):
        return install(self.cert, self.name, chain, office.anchors(), now=now)

    def identity(self, now=NOW):
        return load_identity(self.cert, self.name, now=now)

    @property
    def trusted(self):
        return (self.cert / "authority.pem").read_bytes()


@pytest.fixture
def one(tmp_path):
    return Site(tmp_path, "one")


def enrolled(office, site, enrolment=ONE, now=NOW):
    site.install(office.certify(site.request(), enrolment, now), office, now)
    return site


def roster(office):
    return read_roster((office.cert_dir / "roster.json").read_bytes(), office.anchors())


# -- an authority -------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0o000, 0o077])
def test_an_office_has_the_right_modes_under_any_umask(tmp_path, mask):
    with umask(mask):
        create_office(tmp_path / "cert", "fed", NOW, passphrase=b"horse")
        open_office(tmp_path / "cert", b"horse").roll_over(NOW)
    modes = {
        str(p.relative_to(tmp_path)): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")
    }
    assert modes == {
        "cert": 0o755,
        "cert/authority.pem": 0o644,
        "cert/roster.json": 0o644,
        "cert/authority": 0o700,
        "cert/authority/authority.key": 0o600,
        "cert/authority/authority.pem": 0o644,
        "cert/authority/cross.pem": 0o644,
        "cert/authority/previous.key": 0o600,
        "cert/authority/previous.pem": 0o644,
        "cert/authority/record.jsonl": 0o600,
    }


def test_creating_an_office_again_changes_nothing(cert):
    before = contents(cert)
    assert create_office(cert, "fed", NOW + 1) == []
    assert contents(cert) == before
    with refused("C16"):
        create_office(cert, "other", NOW)
    with refused("C35"):
        create_office(cert, "fed", NOW, passphrase=b"late")
    assert contents(cert) == before


def test_without_an_authority_there_is_no_office(tmp_path):
    with refused("C12"):
        open_office(tmp_path)


def test_an_encrypted_office_can_be_read_and_issues_with_its_passphrase_only(tmp_path, one):
    cert = tmp_path / "cert"
    create_office(cert, "fed", NOW, passphrase=b"horse", kind="P-384")
    assert b"ENCRYPTED" in (cert / "authority/authority.key").read_bytes()
    with refused("C15"):
        open_office(cert, b"donkey")
    reader, before = open_office(cert), contents(cert)
    assert reader.nodes() == ()
    assert reader.fingerprint() == open_office(cert, b"horse").fingerprint()
    with refused("C15"):
        reader.certify(one.request(), ONE, NOW)
    assert contents(cert) == before
    open_office(cert, b"horse").certify(one.request(), ONE, NOW)
    between = contents(cert)
    with refused("C15"):
        reader.revoke("one", "", NOW)
    assert contents(cert) == between


# -- certifying ---------------------------------------------------------------------------------


def forged(builder, key):
    """Valid proofs around any CSR."""
    csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    identity = create_identity_key()
    return Request(csr, identity_public(identity), sign(identity, _SIGNED + csr))


def csr_of(name):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject)


def test_a_request_that_asks_for_more_gets_what_the_operator_enrolled(office):
    server = ExtendedKeyUsageOID.SERVER_AUTH
    hosts = [
        x509.DNSName("agg.example"),
        x509.UniformResourceIdentifier("openfed://fed/aggregator/aggregator"),
    ]
    builder = (
        csr_of("aggregator")
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
        .add_extension(x509.ExtendedKeyUsage([server]), critical=True)
    )
    request = forged(builder, load_pem_private_key(create_key(), None))
    leaf = read_certificate(office.certify(request, ONE, NOW))
    found = {type(e.value): e.value for e in leaf.extensions}
    assert leaf.subject.rfc4514_string() == "CN=one"
    assert found[x509.BasicConstraints] == x509.BasicConstraints(False, None)
    client = ExtendedKeyUsageOID.CLIENT_AUTH
    assert list(found[x509.ExtendedKeyUsage]) == [client]
    assert not found[x509.KeyUsage].key_cert_sign
    assert list(found[x509.SubjectAlternativeName]) == [
        x509.UniformResourceIdentifier("openfed://fed/collaborator/one")
    ]


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP256K1())],
    ids=["rsa-1024", "secp256k1"],
)
def test_weak_and_foreign_keys_leave_no_trace(office, key):
    before = contents(office.cert_dir)
    with refused("C02"):
        office.certify(forged(csr_of("one"), key), ONE, NOW)
    assert contents(office.cert_dir) == before


def test_a_name_belongs_to_the_identity_that_it_was_enrolled_with(office, one, tmp_path):
    enrolled(office, one)
    thief, before = Site(tmp_path / "thief", "one"), contents(office.cert_dir)
    with refused("C30"):
        office.certify(thief.request(), ONE, NOW)
    with refused("C30"):
        office.certify(one.request(), replace(SERVER, name="one"), NOW)
    assert contents(office.cert_dir) == before
    assert office.certify(one.request(), ONE, NOW)  # the same identity may ask again
    assert len(office.nodes()[0].issued) == 2


def test_a_real_enrolment_takes_the_place_of_a_trials(tmp_path, one):
    cert = tmp_path / "cert"
    ensure_federation(cert, "fed", ("localhost",), ("one",), NOW)
    of_trial, office = load_identity(cert, "one", now=NOW).peer, open_office(cert)
    before = contents(cert)
    with refused("C02"):  # what cannot be issued takes nobody's place
        foreign = create_key("P-384")
        identity = load_identity_key(one.cert, "one")
        office.certify(create_request("one", foreign, identity), ONE, NOW)
    assert contents(cert) == before
    enrolled(office, one)
    assert roster(office).denied(of_trial)
    assert not roster(office).denied(one.identity().peer)
    assert office.nodes()[1].identity == identity_public(load_identity_key(one.cert, "one"))


def test_nothing_lasts_beyond_the_end_of_an_enrolment(office, one):
    ending = replace(ONE, until=NOW + DAY)
    chain = office.certify(one.request(), ending, NOW)
    assert inspect(chain).not_after == NOW + DAY
    with refused("C33"):
        office.renew(one.request(), replace(inspect(chain), not_after=NOW + 3 * DAY), NOW + 2 * DAY)
    assert inspect(office.renew(one.request(), inspect(chain), NOW + 1)).not_after == NOW + DAY
    with refused("C33"):
        office.certify(one.request(), replace(ONE, until=NOW), NOW)


def test_states_of_a_node(office, one):
    office.certify(one.request(), ONE, NOW)
    (node,) = office.nodes()
    assert [node.state(NOW), node.state(NOW + 31 * DAY)] == ["valid", "expired"]
    assert replace(node, issued=()).state(NOW) == "enrolled"
    assert office.revoke("one", "left", NOW).state(NOW) == "revoked"


# -- renewing -----------------------------------------------------------------------------------


def test_a_peer_renews_its_certificate_and_may_bring_a_new_key(office, one):
    peer = enrolled(office, one).identity().peer
    key, before = create_key(), roster(office)
    identity = load_identity_key(one.cert, "one")
    chain = office.renew(create_request("one", key, identity), peer, NOW + DAY)
    check_leaf(chain, key, office.anchors(), now=NOW + DAY, role="collaborator", name="one")
    assert inspect(chain).not_after == NOW + 31 * DAY
    assert [each.how for each in office.nodes()[0].issued] == ["hand", "renewal"]
    assert roster(office) == before  # a renewal changes nothing for others
    office.renew(one.request(), inspect(chain), NOW + 2 * DAY)


def test_an_aggregator_keeps_its_hosts_when_it_renews(office, tmp_path):
    site = enrolled(office, Site(tmp_path, "aggregator"), SERVER)
    chain = office.renew(site.request(), site.identity().peer, NOW)
    assert leaf_hosts(chain) == {"agg.example", "127.0.0.1"}


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("C32", {"name": "two"}),
        ("C32", {"role": "aggregator"}),
        ("C32", {"serial": 1}),
        ("C16", {"federation": "other"}),
    ],
)
def test_a_peer_renews_only_what_it_was_issued(office, one, code, changes):
    peer, before = enrolled(office, one).identity().peer, contents(office.cert_dir)
    with refused(code):
        office.renew(one.request(), replace(peer, **changes), NOW)
    assert contents(office.cert_dir) == before


def test_a_peer_renews_with_its_own_identity_only(office, one, tmp_path):
    peer, other = enrolled(office, one).identity().peer, Site(tmp_path, "two")
    with refused("C30"):
        office.renew(other.request(), peer, NOW)


def test_a_revoked_peer_renews_nothing(office, one, tmp_path):
    peer = enrolled(office, one).identity().peer
    office.revoke("one", "laptop stolen", NOW)
    with refused("C31") as caught:
        office.renew(one.request(), peer, NOW)
    assert "laptop stolen" in caught.value.message
    anew = Site(tmp_path / "anew", "one")
    enrolled(office, anew)
    for site in (one, anew):  # nor does its old certificate, for the holder of the new name
        with refused("C31"):
            office.renew(site.request(), peer, NOW)


# -- revoking -----------------------------------------------------------------------------------


def test_a_revoked_name_comes_back_with_new_keys_only(office, one, tmp_path):
    first = enrolled(office, one).identity().peer
    office.revoke("one", "stolen", NOW + 1)
    with refused("C31"):
        office.certify(one.request(), ONE, NOW + 2)
    second = enrolled(office, Site(tmp_path / "anew", "one")).identity().peer
    now = roster(office)
    assert now.denied(first) and not now.denied(second)
    assert now.revoked_serials == {first.serial}


def test_revoking_again_or_a_stranger_changes_nothing(office, one):
    enrolled(office, one)
    office.revoke("one", "first", NOW)
    before = contents(office.cert_dir)
    assert office.revoke("one", "second", NOW).reason == "first"
    with refused("C32") as caught:
        office.revoke("nobody", "", NOW)
    assert "one" in caught.value.message
    assert contents(office.cert_dir) == before


def test_all_serials_of_a_revoked_node_are_on_the_list_for_outsiders(office, one, tmp_path):
    two = enrolled(office, Site(tmp_path, "two"), TWO)
    serials = {inspect(office.certify(one.request(), ONE, NOW)).serial for _ in range(3)}
    office.revoke("one", "", NOW + 5)
    crl = x509.load_pem_x509_crl(office.crl(NOW + 60))
    root = read_certificate(office.anchors())
    assert crl.is_signature_valid(root.public_key()) and crl.issuer == root.subject
    assert {each.serial_number for each in crl} == serials
    assert {each.revocation_date_utc.timestamp() for each in crl} == {NOW + 5}
    assert crl.last_update_utc.timestamp() == NOW + 60
    assert crl.get_revoked_certificate_by_serial_number(two.identity().peer.serial) is None


# -- the record and the roster ------------------------------------------------------------------


def test_the_roster_follows_every_change_and_its_number_grows_by_one(office, one, tmp_path):
    numbers = [roster(office).number]
    enrolled(office, one)
    numbers.append(roster(office).number)
    enrolled(office, Site(tmp_path, "two"), TWO)
    numbers.append(roster(office).number)
    office.revoke("one", "", NOW)
    numbers.append(roster(office).number)
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    assert [(m.name, m.role, m.revoked) for m in roster(office).members] == [
        ("one", "collaborator", True),
        ("two", "collaborator", False),
    ]


@pytest.mark.parametrize("harm", ["lost", "garbage", "foreign"])
def test_a_lost_or_foreign_roster_is_made_again_with_the_same_number(office, one, tmp_path, harm):
    enrolled(office, one)
    good, path = roster(office), office.cert_dir / "roster.json"
    if harm == "lost":
        path.unlink()
    elif harm == "garbage":
        path.write_bytes(b"{}")
    else:
        create_office(tmp_path / "foreign", "fed", NOW)
        path.write_bytes((tmp_path / "foreign/roster.json").read_bytes())
    create_office(office.cert_dir, "fed", NOW)
    assert roster(office) == good


def test_a_line_that_a_crash_cut_off_never_happened(office, one, tmp_path):
    enrolled(office, one)
    record = office.cert_dir / "authority/record.jsonl"
    whole = record.read_bytes()
    for cut in (1, 20, len(whole.splitlines()[-1])):
        record.write_bytes(whole + whole.splitlines()[-1][:-1][:cut])
        assert [node.name for node in office.nodes()] == ["one"]
    enrolled(office, Site(tmp_path, "two"), TWO)
    assert record.read_bytes().startswith(whole)
    assert [node.name for node in office.nodes()] == ["one", "two"]
    assert all(json.loads(line) for line in record.read_bytes().splitlines())


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b"junk", b'{"event": "x", "at": 1}', b"\xff"])
def test_a_damaged_record_issues_nothing(office, one, line):
    enrolled(office, one)
    record = office.cert_dir / "authority/record.jsonl"
    first, *rest = record.read_bytes().splitlines()
    record.write_bytes(b"\n".join([first, line, *rest]) + b"\n")
    with refused("C36") as caught:
        office.certify(one.request(), ONE, NOW)
    assert "record.jsonl:2" in caught.value.message


def test_a_record_that_others_can_write_is_not_believed(office):
    (office.cert_dir / "authority/record.jsonl").chmod(0o666)
    with refused("C11"):
        office.nodes()


def test_the_record_of_an_earlier_release_is_taken_over(tmp_path):
    cert = tmp_path / "cert"
    ensure_federation(cert, "fed", ("localhost",), ("one",), NOW)
    kept = ("at", "federation", "role", "name", "hosts", "serial", "not_after", "identity")
    lines = map(json.loads, (cert / "authority/record.jsonl").read_text().splitlines()[1:])
    old = [{k: v for k, v in line.items() if k in kept} | {"federation": "fed"} for line in lines]
    (cert / "authority/record.jsonl").unlink()
    (cert / "roster.json").unlink()
    path = cert / "authority/issued.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    path.chmod(0o600)
    assert {
        path.name for path in ensure_federation(cert, "fed", ("localhost",), ("one",), NOW)
    } == {"roster.json"}
    assert [node.name for node in open_office(cert).nodes()] == ["aggregator", "one"]
    assert not path.exists()


CERTIFIER = """
import sys
from pathlib import Path
from openfed.pki.authority import Enrolment
from openfed.pki.keys import create_identity_key, create_key
from openfed.pki.office import open_office
from openfed.pki.request import create_request
cert, first = Path(sys.argv[1]), sys.argv[2]
key = create_key()
print("ready", flush=True)
sys.stdin.readline()
for number in range(20):
    name = f"{first}{number}"
    request = create_request(name, key, create_identity_key())
    open_office(cert).certify(request, Enrolment("fed", "collaborator", name), float(sys.argv[3]))
"""


def test_concurrent_commands_lose_no_line(office):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CERTIFIER, str(office.cert_dir), letter, str(NOW)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for letter in "abc"
    ]
    assert [each.stdout.readline() for each in started] == [b"ready\n"] * 3
    for each in started:
        each.stdin.write(b"\n")
        each.stdin.flush()
    assert [each.communicate()[0] or each.returncode for each in started] == [0, 0, 0]
    names = {f"{letter}{number}" for letter in "abc" for number in range(20)}
    assert {node.name for node in office.nodes()} == names
    assert {member.name for member in roster(office).members} == names
    assert roster(office).number == 61


def test_threads_of_one_office_lose_no_line(office):
    def certify(name):
        request = create_request(name, create_key(), create_identity_key())
        office.certify(request, Enrolment("fed", "collaborator", name), NOW)

    threads = [threading.Thread(target=certify, args=(f"t{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(office.nodes()) == 8 and roster(office).number == 9


# -- installing ---------------------------------------------------------------------------------


def test_a_chain_for_others_is_not_installed(office, one, tmp_path):
    two = Site(tmp_path, "two")
    chain, before = office.certify(two.request(), TWO, NOW), contents(one.cert)
    with refused("C08"):
        one.install(chain, office)
    strange = office.certify(
        create_request("one", create_key(), load_identity_key(one.cert, "one")), ONE, NOW
    )
    with refused("C10"):
        one.install(strange, office)
    chain = office.certify(one.request(), ONE, NOW)
    for code, asked in (("C16", {"federation": "other"}), ("C09", {"role": "aggregator"})):
        with refused(code):
            install(one.cert, "one", chain, office.anchors(), now=NOW, **asked)
    assert contents(one.cert) == before


def test_an_authority_that_the_trusted_one_does_not_vouch_for_is_refused(office, one, tmp_path):
    enrolled(office, one)
    create_office(tmp_path / "evil", "fed", NOW)
    evil, before = open_office(tmp_path / "evil"), contents(one.cert)
    chain = evil.certify(one.request(), ONE, NOW)
    for anchors in (evil.anchors(), evil.anchors() + office.anchors()):
        with refused("C38"):
            install(one.cert, "one", chain, anchors, now=NOW)
    assert contents(one.cert) == before


def test_an_older_roster_does_not_replace_a_newer_one(office, one):
    enrolled(office, one)
    old = (office.cert_dir / "roster.json").read_bytes()
    office.revoke("one", "", NOW)
    new = (office.cert_dir / "roster.json").read_bytes()
    assert install_roster(one.cert, new) == [one.cert / "roster.json"]
    assert install_roster(one.cert, old) == []
    assert load_roster(one.cert).denied(one.identity().peer)


# -- roll-over ----------------------------------------------------------------------------------


def handshake(server, client, hostname="agg.example"):
    """A real mutual TLS 1.3 handshake over a socket pair; whether both sides are content."""

    def context(identity, side):
        made = ssl.SSLContext(side)
        made.minimum_version = ssl.TLSVersion.TLSv1_3
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(cadata=identity.authority_pem.decode())
        for name, content in (("chain", identity.chain_pem), ("key", identity.key_pem)):
            (folder / name).write_bytes(content)
        made.load_cert_chain(folder / "chain", folder / "key")
        return made

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        serving = context(server, ssl.PROTOCOL_TLS_SERVER)
        dialling = context(client, ssl.PROTOCOL_TLS_CLIENT)
    ours, theirs = socket.socketpair()
    outcome = []

    def serve():
        try:
            with serving.wrap_socket(theirs, server_side=True) as tls:
                tls.sendall(b"!")
                outcome.append(True)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with dialling.wrap_socket(ours, server_hostname=hostname) as tls:
            return tls.recv(1) == b"!" and not thread.join() and outcome == [True]
    except OSError:
        return False
    finally:
        ours.close()
        thread.join()


@pytest.fixture
def rolled(tmp_path):
    """An office in a roll-over at this hour, and nodes before and after their renewal."""
    now = time.time()
    create_office(tmp_path / "cert", "fed", now)
    office = open_office(tmp_path / "cert")
    aggregator, one = Site(tmp_path, "aggregator"), Site(tmp_path, "one")
    enrolled(office, aggregator, SERVER, now)
    enrolled(office, one, ONE, now)
    before = [site.identity(now) for site in (aggregator, one)]
    office.roll_over(now)
    for site in (aggregator, one):
        site.install(office.renew(site.request(), site.identity(now).peer, now), office, now)
    after = [site.identity(now) for site in (aggregator, one)]
    return now, office, before, after


def test_before_and_after_their_renewal_all_nodes_accept_each_other(rolled):
    now, _, before, after = rolled
    old, both = before[1].authority_pem, after[1].authority_pem
    assert len(read_certificates(old)) == 1 and len(read_certificates(both)) == 2
    for identity in (*before, *after):
        for anchors in (old, both):
            check_leaf(identity.chain_pem, identity.key_pem, anchors, now=now)
    for server in (before[0], after[0]):
        for client in (before[1], after[1]):
            assert handshake(server, client)


def test_after_the_roll_over_only_the_new_root_counts(rolled):
    now, office, before, after = rolled
    office.finish_roll_over(now)
    new = office.anchors()
    assert len(read_certificates(new)) == 1
    for identity in after:
        check_leaf(identity.chain_pem, identity.key_pem, new, now=now)
    for identity in before:
        with refused("C07"):
            check_leaf(identity.chain_pem, identity.key_pem, new, now=now)
    server, client = (replace(each, authority_pem=new) for each in after)
    assert handshake(server, client)
    assert not handshake(server, replace(before[1], authority_pem=new))
    assert not handshake(before[0], client)
    assert not list((office.cert_dir / "authority").glob("previous*"))


def test_handshakes_of_strangers_fail(rolled, tmp_path):
    now, _, before, _ = rolled
    create_office(tmp_path / "evil", "fed", now)
    evil, site = open_office(tmp_path / "evil"), Site(tmp_path / "far", "one")
    site.install(evil.certify(site.request(), ONE, now), evil, now)
    assert not handshake(
        before[0], replace(site.identity(now), authority_pem=before[0].authority_pem)
    )


def test_the_roster_is_believed_under_the_old_root_and_the_new(rolled, tmp_path):
    now, office, before, after = rolled
    data = (office.cert_dir / "roster.json").read_bytes()
    for anchors in (before[1].authority_pem, after[1].authority_pem, office.authority.certificate):
        assert [m.name for m in read_roster(data, anchors).members] == ["aggregator", "one"]
    with refused("C37"):
        read_roster(data, create_authority("fed", now).certificate)


def test_a_revocation_reaches_the_list_of_the_root_that_issued(rolled):
    now, office, before, after = rolled
    office.revoke("one", "", now)
    blocks = office.crl(now).split(b"-----END X509 CRL-----\n")[:-1]
    lists = [x509.load_pem_x509_crl(block + b"-----END X509 CRL-----\n") for block in blocks]
    new, old = read_certificates(office.anchors())
    for crl, root, node in zip(lists, (new, old), (after[1], before[1]), strict=True):
        assert crl.is_signature_valid(root.public_key())
        assert [each.serial_number for each in crl] == [node.peer.serial]


def test_a_roll_over_is_not_finished_while_nodes_hold_old_certificates(office, one, tmp_path):
    enrolled(office, one)
    two = enrolled(office, Site(tmp_path, "two"), TWO)
    with refused("C39"):
        office.finish_roll_over(NOW)
    office.roll_over(NOW)
    with refused("C39"):
        office.roll_over(NOW)
    one.install(office.renew(one.request(), one.identity().peer, NOW), office)
    with refused("C39") as caught:
        office.finish_roll_over(NOW)
    assert "two" in caught.value.message and "one" not in caught.value.message
    office.finish_roll_over(NOW, force=True)
    create_office(office.cert_dir, "fed", NOW)
    with refused("C07"):
        check_leaf(two.identity().chain_pem, two.identity().key_pem, office.anchors(), now=NOW)


def test_expired_and_revoked_nodes_do_not_hold_a_roll_over_up(office, one, tmp_path):
    enrolled(office, one)
    enrolled(office, Site(tmp_path, "two"), TWO)
    office.revoke("two", "", NOW)
    office.roll_over(NOW)
    with refused("C39"):
        office.finish_roll_over(NOW + 29 * DAY)
    office.finish_roll_over(NOW + 31 * DAY)


def test_a_node_that_slept_through_the_roll_over_comes_back(office, one):
    enrolled(office, one)
    office.roll_over(NOW)
    office.finish_roll_over(NOW + 31 * DAY)
    late = NOW + 40 * DAY
    one.install(office.certify(one.request(), ONE, late), office, late)
    assert one.trusted == office.anchors()
    one.identity(late)


@pytest.mark.parametrize("done", range(4))
def test_a_roll_over_that_a_crash_cut_short_is_settled(office, one, done):
    """`done`: how many of its files had been put in their places."""
    enrolled(office, one)
    folder = office.cert_dir / "authority"
    old = {name: (folder / name).read_bytes() for name in ("authority.key", "authority.pem")}
    office.roll_over(NOW)
    anchors, following = office.anchors(), folder / "next"
    following.mkdir(mode=0o700)
    names = ("authority.key", "authority.pem", "cross.pem")
    for name in names:
        (following / name).write_bytes((folder / name).read_bytes())
        (following / name).chmod(0o600)
    for name in names[done:]:
        if name in old:
            (folder / name).write_bytes(old[name])
        else:
            (folder / name).unlink()
    if not done:
        (folder / "previous.pem").unlink()
    opened = open_office(office.cert_dir)
    assert not list(folder.glob("*next*"))
    assert opened.anchors() == anchors
    assert (folder / "previous.key").read_bytes() == old["authority.key"]
    chain = opened.certify(one.request(), ONE, NOW)
    key = (one.cert / "one/node.key").read_bytes()
    for anchors in (one.trusted, opened.anchors(), opened.authority.certificate):
        check_leaf(chain, key, anchors, now=NOW)


def test_an_encrypted_root_stays_encrypted(tmp_path):
    create_office(tmp_path, "fed", NOW, passphrase=b"horse")
    with refused("C15"):
        open_office(tmp_path).roll_over(NOW)
    open_office(tmp_path, b"horse").roll_over(NOW)
    assert b"ENCRYPTED" in (tmp_path / "authority/authority.key").read_bytes()
    assert b"ENCRYPTED" in (tmp_path / "authority/previous.key").read_bytes()
    open_office(tmp_path, b"horse").crl(NOW)


def test_a_denied_peer_is_one_that_the_roster_does_not_carry(office, one):
    peer = enrolled(office, one).identity().peer
    found = roster(office)
    assert not found.denied(peer)
    assert found.identity("one") == office.nodes()[0].identity
    for changes in ({"name": "two"}, {"role": "aggregator"}, {"federation": "other"}):
        assert found.denied(replace(peer, **changes))
    assert found.denied(Peer("fed", "collaborator", "two", peer.serial, NOW + 1))
    assert found.identity("two") is None
    office.revoke("one", "", NOW)
    assert roster(office).denied(peer) and roster(office).identity("one") is None


def test_a_changed_roster_is_refused(office, one):
    enrolled(office, one)
    data = (office.cert_dir / "roster.json").read_bytes()
    whole = json.loads(data)
    for path, value in (
        (("roster", "number"), 99),
        (("roster", "federation"), "other"),
        (("roster", "members", 0, "revoked"), True),
        (("roster", "members", 0, "name"), "two"),
        (("roster", "revoked_serials"), ["01"]),
        (("roster", "extra"), 1),
        (("signature",), "00"),
        (("signature",), None),
        (("cross",), 1),
        (("roster",), []),
    ):
        changed = json.loads(data)
        place = changed
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
        with refused("C37"):
            read_roster(json.dumps(changed).encode(), office.anchors())
    assert read_roster(json.dumps(whole).encode(), office.anchors()).number == 2  # layout is free
    for junk in (b"", b"{", b"[]", b"\xff", b"{}"):
        with refused("C37"):
            read_roster(junk, office.anchors())
