"""What the authority issues, and what it does not."""

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from openfed.errors import CertificateError
from openfed.pki.authority import Authority, Enrolment, create_authority, issue
from openfed.pki.files import load_profiles
from openfed.pki.keys import create_identity_key, create_key, identity_public, sign, verify
from openfed.pki.leaf import check_leaf, check_peer, inspect, leaf_hosts, read_certificate
from openfed.pki.peer import Peer, parse_peer_uri, peer_uri
from openfed.pki.profile import Profile, parse_profiles
from openfed.pki.request import _SIGNED, Request, create_request

NOW = 1_800_000_000.0
DAY = 86400.0
PROFILES = load_profiles()
COLLABORATOR, AGGREGATOR = PROFILES["collaborator"], PROFILES["aggregator"]
ONE = Enrolment("fed", "collaborator", "one")
SERVER = Enrolment("fed", "aggregator", "aggregator", ("agg.example", "10.0.0.7", "::1"))
AUTHORITY = create_authority("fed", NOW)
KEY = create_key()


def request(key: bytes = KEY) -> Request:
    return create_request("one", key, create_identity_key())


def leaf(enrolment: Enrolment = ONE, profile: Profile = COLLABORATOR, now: float = NOW) -> bytes:
    return issue(AUTHORITY, request(), enrolment, profile, now)


def refused(code: str):
    return pytest.raises(CertificateError, match=f"^{code} ")


def extensions(pem: bytes) -> dict[str, tuple[object, bool]]:
    found = read_certificate(pem).extensions
    assert len({e.oid._name for e in found}) == len(found)
    return {e.oid._name: (e.value, e.critical) for e in found}


def usage(*names: str) -> x509.KeyUsage:
    fields = [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ]
    return x509.KeyUsage(**{field: field in names for field in fields})


def key_id(pem: bytes) -> bytes:
    return x509.SubjectKeyIdentifier.from_public_key(read_certificate(pem).public_key()).digest


def forged_request(builder: x509.CertificateSigningRequestBuilder, key) -> Request:
    """A request with valid proofs around any CSR."""
    algorithm = None if isinstance(key, Ed25519PrivateKey) else hashes.SHA256()
    csr = builder.sign(key, algorithm).public_bytes(Encoding.PEM)
    identity = create_identity_key()
    return Request(csr, identity_public(identity), sign(identity, _SIGNED + csr))


def named_csr(name: str = "one") -> x509.CertificateSigningRequestBuilder:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject)


def test_every_extension_of_an_authority_is_as_designed():
    pem = AUTHORITY.certificate
    assert extensions(pem) == {
        "basicConstraints": (x509.BasicConstraints(True, 1), True),
        "keyUsage": (usage("key_cert_sign", "crl_sign"), True),
        "subjectKeyIdentifier": (x509.SubjectKeyIdentifier(key_id(pem)), False),
        "subjectAltName": (
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("openfed://fed/authority/fed")]
            ),
            False,
        ),
    }
    root = read_certificate(pem)
    root.verify_directly_issued_by(root)
    assert isinstance(root.public_key().curve, ec.SECP256R1)
    assert root.not_valid_after_utc.timestamp() == NOW + 5 * 365 * DAY


@pytest.mark.parametrize(
    ("enrolment", "profile", "usages", "names"),
    [
        (
            ONE,
            COLLABORATOR,
            [ExtendedKeyUsageOID.CLIENT_AUTH],
            [x509.UniformResourceIdentifier("openfed://fed/collaborator/one")],
        ),
        (
            SERVER,
            AGGREGATOR,
            [ExtendedKeyUsageOID.SERVER_AUTH],
            [
                x509.UniformResourceIdentifier("openfed://fed/aggregator/aggregator"),
                x509.DNSName("agg.example"),
                x509.IPAddress(ipaddress.ip_address("10.0.0.7")),
                x509.IPAddress(ipaddress.ip_address("::1")),
            ],
        ),
    ],
)
def test_every_extension_of_a_leaf_is_as_designed(enrolment, profile, usages, names):
    pem = leaf(enrolment, profile)
    assert extensions(pem) == {
        "basicConstraints": (x509.BasicConstraints(False, None), True),
        "keyUsage": (usage("digital_signature"), True),
        "extendedKeyUsage": (x509.ExtendedKeyUsage(usages), False),
        "subjectAltName": (x509.SubjectAlternativeName(names), False),
        "subjectKeyIdentifier": (x509.SubjectKeyIdentifier(key_id(pem)), False),
        "authorityKeyIdentifier": (
            x509.AuthorityKeyIdentifier(key_id(AUTHORITY.certificate), None, None),
            False,
        ),
    }
    found = read_certificate(pem)
    assert found.subject.rfc4514_string() == f"CN={enrolment.name}"
    assert found.not_valid_before_utc.timestamp() == NOW - 600
    assert found.not_valid_after_utc.timestamp() == NOW + 30 * DAY
    found.verify_directly_issued_by(read_certificate(AUTHORITY.certificate))


def test_serial_numbers_are_random_128_bit_numbers():
    serials = {inspect(leaf()).serial for _ in range(16)}
    assert len(serials) == 16
    assert all(0 < serial < 2**128 for serial in serials)
    assert max(serials).bit_length() > 112


def test_a_request_that_asks_for_more_gets_none_of_it():
    key = load_pem_private_key(KEY, None)
    builder = (
        named_csr("root")
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [
                    x509.DNSName("agg.example"),
                    x509.UniformResourceIdentifier("openfed://fed/aggregator/aggregator"),
                ]
            ),
            critical=False,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=True)
        .add_extension(usage("key_cert_sign"), critical=True)
    )
    pem = issue(AUTHORITY, forged_request(builder, key), ONE, COLLABORATOR, NOW)
    assert extensions(pem) == extensions(leaf())
    assert read_certificate(pem).subject.rfc4514_string() == "CN=one"


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256K1()),
        ec.generate_private_key(ec.SECP521R1()),
        Ed25519PrivateKey.generate(),
    ],
    ids=["rsa", "secp256k1", "p521", "ed25519"],
)
def test_weak_and_foreign_kinds_of_key_are_refused(key):
    with refused("C02"):
        issue(AUTHORITY, forged_request(named_csr(), key), ONE, COLLABORATOR, NOW)


def test_a_key_of_another_kind_than_the_profile_says_is_refused():
    with refused("C02"):
        issue(AUTHORITY, request(create_key("P-384")), ONE, COLLABORATOR, NOW)


def test_a_request_needs_the_proof_of_both_keys():
    good, other = request(), request()
    csr = x509.load_pem_x509_csr(good.csr).public_bytes(Encoding.DER)
    broken = csr[:-1] + bytes([csr[-1] ^ 1])
    pem = x509.load_der_x509_csr(broken).public_bytes(Encoding.PEM)
    identity = create_identity_key()
    for bad in (
        Request(good.csr, other.identity, good.signature),
        Request(good.csr, good.identity, other.signature),
        Request(good.csr, b"short", good.signature),
        Request(pem, identity_public(identity), sign(identity, _SIGNED + pem)),
    ):
        with refused("C03"):
            issue(AUTHORITY, bad, ONE, COLLABORATOR, NOW)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_are_refused_with_a_code(data):
    with refused("C01"):
        issue(AUTHORITY, Request(data, b"", b""), ONE, COLLABORATOR, NOW)
    with refused("C01"):
        inspect(data)


def test_an_oversized_request_is_refused():
    with refused("C01"):
        issue(AUTHORITY, Request(b"x" * (1 << 20), b"", b""), ONE, COLLABORATOR, NOW)


def test_a_leaf_never_outlives_its_authority():
    late = NOW + 5 * 365 * DAY - 3 * DAY
    assert inspect(leaf(now=late)).not_after == NOW + 5 * 365 * DAY
    with refused("C14"):
        leaf(now=NOW + 5 * 365 * DAY)


def test_an_authority_issues_for_its_own_federation_only():
    with refused("C07"):
        leaf(Enrolment("other", "collaborator", "one"))


@pytest.mark.parametrize(
    "enrolment",
    [
        Enrolment("fed", "collaborator", ""),
        Enrolment("fed", "collaborator", "../up"),
        Enrolment("fed", "collaborator", "a/aggregator"),
        Enrolment("fed", "collaborator", "authority"),
        Enrolment("fed", "collaborator", "x" * 64),
        Enrolment("fed", "collaborator", "one", ("agg.example",)),
    ],
)
def test_names_that_do_not_belong_in_a_certificate_are_refused(enrolment):
    with refused("C04"):
        leaf(enrolment)


@pytest.mark.parametrize(
    "host", ["*.example", "a b", "", "-x", "x..y", "10.0.0.300/8", "é.example"]
)
def test_hosts_that_are_no_hosts_are_refused(host):
    with refused("C04"):
        leaf(Enrolment("fed", "aggregator", "aggregator", (host,)), AGGREGATOR)


def test_an_aggregator_without_a_host_is_refused():
    with refused("C04"):
        leaf(Enrolment("fed", "aggregator", "aggregator"), AGGREGATOR)


def test_a_passphrase_is_needed_to_issue_and_only_the_right_one_works():
    made = create_authority("fed", NOW, kind="P-384", passphrase=b"correct horse")
    assert b"ENCRYPTED" in made.key
    issue(made, request(), ONE, COLLABORATOR, NOW)
    for passphrase in (None, b"wrong"):
        with refused("C15"):
            issue(
                Authority(made.certificate, made.key, passphrase), request(), ONE, COLLABORATOR, NOW
            )


def test_keys_are_not_shown_by_repr():
    assert KEY.decode() not in repr(Authority(b"", KEY, b"secret"))
    assert "secret" not in repr(Authority(b"", KEY, b"secret"))


def test_inspect_reads_who_a_certificate_speaks_for():
    pem = leaf(SERVER, AGGREGATOR)
    serial = read_certificate(pem).serial_number
    assert inspect(pem) == Peer("fed", "aggregator", "aggregator", serial, NOW + 30 * DAY)
    assert leaf_hosts(pem) == {"agg.example", "10.0.0.7", "::1"}


NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?", fullmatch=True)


@settings(deadline=None)
@given(NAMES, NAMES)
def test_peer_uris_are_read_back(federation, name):
    uri = peer_uri(federation, "collaborator", name)
    assert parse_peer_uri(uri) == (federation, "collaborator", name)


@pytest.mark.parametrize(
    "uri",
    [
        "http://fed/collaborator/one",
        "openfed://fed/collaborator/one/x",
        "openfed://fed/collaborator/one\n",
        "openfed://fed//one",
        "openfed://fed/collaborator/..",
    ],
)
def test_other_uris_name_nobody(uri):
    assert parse_peer_uri(uri) is None


def test_a_certificate_of_someone_else_is_not_ours():
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "www.example")])
    begins = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    with refused("C17"):
        inspect(certificate.public_bytes(Encoding.PEM))


def local_checks(pem: bytes, **changes) -> Peer:
    arguments = {
        "key_pem": KEY,
        "authority_pem": AUTHORITY.certificate,
        "now": NOW,
        "federation": "fed",
        "role": "collaborator",
        "name": "one",
    }
    return check_leaf(pem, **(arguments | changes))


def test_a_good_leaf_passes_the_local_checks():
    assert local_checks(leaf()).name == "one"


@pytest.mark.parametrize(
    ("code", "changes"),
    [
        ("C05", {"now": NOW + 30 * DAY}),
        ("C06", {"now": NOW - 601}),
        ("C07", {"authority_pem": create_authority("fed", NOW).certificate}),
        ("C08", {"name": "two"}),
        ("C09", {"role": "aggregator"}),
        ("C10", {"key_pem": create_key()}),
        ("C14", {"now": NOW + 6 * 365 * DAY}),
        ("C16", {"federation": "other"}),
        ("C01", {"authority_pem": b"nothing"}),
        ("C02", {"key_pem": create_identity_key()}),
    ],
)
def test_each_fault_found_before_dialling_has_its_own_code(code, changes):
    with refused(code):
        local_checks(leaf(), **changes)


def test_the_last_moments_of_a_leaf_are_exact():
    local_checks(leaf(), now=NOW - 600)
    local_checks(leaf(), now=NOW + 30 * DAY - 1)


def test_a_collaborators_leaf_cannot_issue_another():
    middle = create_key()
    signer = Authority(issue(AUTHORITY, request(middle), ONE, COLLABORATOR, NOW), middle)
    forged = issue(signer, request(), Enrolment("fed", "collaborator", "one"), COLLABORATOR, NOW)
    with refused("C07"):
        local_checks(forged + signer.certificate)


@pytest.mark.parametrize(
    ("code", "peer", "denied"),
    [
        ("C05", Peer("fed", "collaborator", "one", 1, NOW), False),
        ("C09", Peer("fed", "evaluator", "one", 1, NOW + 1), False),
        ("C16", Peer("other", "collaborator", "one", 1, NOW + 1), False),
        ("C18", Peer("fed", "collaborator", "one", 1, NOW + 1), True),
    ],
)
def test_a_peer_is_refused_with_the_code_of_its_fault(code, peer, denied):
    with refused(code):
        check_peer(peer, federation="fed", role="collaborator", now=NOW, denied=lambda peer: denied)


def test_signatures_of_identity_keys_verify_and_nothing_else_does():
    identity = create_identity_key()
    public, signature = identity_public(identity), sign(identity, b"message")
    assert verify(public, b"message", signature)
    assert not verify(public, b"messagE", signature)
    assert not verify(identity_public(create_identity_key()), b"message", signature)
    assert not verify(public, b"message", b"")
    with refused("C02"):
        sign(KEY, b"message")


def test_an_identity_is_no_certificate_key():
    pem = Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    with refused("C02"):
        create_request("one", pem, pem)


GOOD = {"key": "P-256", "lifetime": "30d", "backdate": "10m", "usages": ["client_auth"]}


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"x": {}},
        {"x": GOOD | {"key": "RSA"}},
        {"x": GOOD | {"lifetime": "91d"}},
        {"x": GOOD | {"lifetime": "30s"}},
        {"x": GOOD | {"lifetime": "30"}},
        {"x": GOOD | {"backdate": 600}},
        {"x": GOOD | {"usages": []}},
        {"x": GOOD | {"usages": ["code_signing"]}},
        {"x": GOOD | {"ca": True}},
    ],
)
def test_a_profile_that_is_not_allowed_is_refused(value):
    assert parse_profiles({"x": GOOD}, "here")["x"].lifetime_s == 30 * DAY
    with refused("C19"):
        parse_profiles(value, "here")
