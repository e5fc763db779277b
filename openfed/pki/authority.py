"""The authority: it signs leaves for the names on the operator's record, and nothing else."""

import datetime
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from openfed.errors import CertificateError
from openfed.pki.keys import CURVES, create_key, curve_kind, load_key
from openfed.pki.leaf import inspect, read_certificate
from openfed.pki.peer import AUTHORITY, host_name, node_name, peer_uri
from openfed.pki.profile import Profile
from openfed.pki.request import Request, proven_key

AUTHORITY_S = 5 * 365 * 86400.0
LISTENER_S = 2 * 86400.0
CRL_S = 7 * 86400.0
_BACKDATE_S = 600.0
_USAGES = {
    "server_auth": ExtendedKeyUsageOID.SERVER_AUTH,
    "client_auth": ExtendedKeyUsageOID.CLIENT_AUTH,
}


@dataclass(frozen=True)
class Authority:
    certificate: bytes  # PEM
    key: bytes = field(repr=False)  # PEM, encrypted if there is a passphrase
    passphrase: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Enrolment:
    """The operator's record of one node: what its certificate will say, whatever it asks for."""

    federation: str
    role: str
    name: str
    hosts: tuple[str, ...] = ()  # DNS names and IPs that a server is reached at
    until: float | None = None  # seconds since the epoch; no certificate lasts beyond it


def create_authority(
    federation: str,
    now: float,
    *,
    kind: str = "P-256",
    passphrase: bytes | None = None,
    suffix: str = "",
) -> Authority:
    """A new root for `federation`, valid for five years. `suffix` tells it from an older one."""
    pem = create_key(kind, passphrase)
    key = load_key(pem, passphrase)
    common = f"{node_name(federation)[:40]} openfed {AUTHORITY}{suffix}"
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
    certificate = (
        _builder(name, name, key.public_key(), now - _BACKDATE_S, now + AUTHORITY_S)
        .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_names(Enrolment(federation, AUTHORITY, federation)), critical=False)
        .sign(key, CURVES[kind][1])
    )
    return Authority(certificate.public_bytes(Encoding.PEM), pem, passphrase)


def issue(
    authority: Authority, request: Request, enrolment: Enrolment, profile: Profile, now: float
) -> bytes:
    """A leaf (PEM) for the request's public key; all else is the operator's. Never outlives the CA.

    Raises C01-C04, C07 (a record of another federation), C14 (the authority has expired), C15.
    """
    public = proven_key(request)
    if curve_kind(public) != profile.key:
        raise CertificateError("C02", f"expected a {profile.key} key for a {enrolment.role}")
    _check_enrolment(enrolment, profile)
    root = read_certificate(authority.certificate)
    key = load_key(authority.key, authority.passphrase)
    if inspect(authority.certificate).federation != enrolment.federation:
        raise CertificateError(
            "C07", f"this authority does not speak for federation {enrolment.federation!r}"
        )
    ends = min(now + profile.lifetime_s, root.not_valid_after_utc.timestamp())
    if ends <= now:
        raise CertificateError("C14", f"the authority expired on {root.not_valid_after_utc:%F}")
    # A leaf of a minute that began ten minutes ago would be past half its life at once.
    backdate = min(profile.backdate_s, profile.lifetime_s / 10)
    dates = (now - backdate, min(ends, enrolment.until or ends))
    return _sign_leaf(key, root, public, enrolment, profile.usages, dates)


def cross_sign(old: Authority, new: bytes, now: float) -> bytes:
    """The root `new` (PEM) as an intermediate of `old`, for nodes that trust only the latter."""
    key = load_key(old.key, old.passphrase)
    root, added = read_certificate(old.certificate), read_certificate(new)
    public = added.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    federation = inspect(new).federation
    dates = (now - _BACKDATE_S, root.not_valid_after_utc.timestamp())
    certificate = (
        _builder(added.subject, root.subject, public, *dates)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(_names(Enrolment(federation, AUTHORITY, federation)), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, CURVES[curve_kind(key)][1])
    )
    return certificate.public_bytes(Encoding.PEM)


def sign_as_authority(authority: Authority, message: bytes) -> bytes:
    """ECDSA (DER), with the hash of the key's kind; see `leaf.signed_by`. Raises C15."""
    key = load_key(authority.key, authority.passphrase)
    return key.sign(message, ec.ECDSA(CURVES[curve_kind(key)][1]))


def revocation_list(
    authority: Authority, revoked: Iterable[tuple[int, float]], number: int, now: float
) -> bytes:
    """A CRL (PEM) of serials and when they were revoked, good for a week. Raises C15."""
    key, root = (
        load_key(authority.key, authority.passphrase),
        read_certificate(authority.certificate),
    )
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(root.subject)
        .last_update(_utc(now))
        .next_update(_utc(now + CRL_S))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    for serial, at in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(_utc(at))
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(key, CURVES[curve_kind(key)][1]).public_bytes(Encoding.PEM)


def issue_listener(authority: Authority, public: ec.EllipticCurvePublicKey, now: float) -> bytes:
    """A leaf (PEM) of two days for the authority's own enrolment listener. Raises C14, C15.

    It names no host: no client that checks one can take it for the aggregator's.
    """
    root = read_certificate(authority.certificate)
    key = load_key(authority.key, authority.passphrase)
    ends = min(now + LISTENER_S, root.not_valid_after_utc.timestamp())
    if ends <= now:
        raise CertificateError("C14", f"the authority expired on {root.not_valid_after_utc:%F}")
    federation = inspect(authority.certificate).federation
    listener = Enrolment(federation, AUTHORITY, "enrolment")
    dates = (now - _BACKDATE_S, ends)
    return _sign_leaf(key, root, public, listener, ("server_auth",), dates)


def _sign_leaf(
    key: ec.EllipticCurvePrivateKey,
    root: x509.Certificate,
    public: ec.EllipticCurvePublicKey,
    enrolment: Enrolment,
    usages: Sequence[str],
    dates: tuple[float, float],
) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, enrolment.name)])
    certificate = (
        _builder(subject, root.subject, public, *dates)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_USAGES[u] for u in usages]), critical=False)
        .add_extension(_names(enrolment), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .sign(key, CURVES[curve_kind(key)][1])
    )
    return certificate.public_bytes(Encoding.PEM)


def _check_enrolment(enrolment: Enrolment, profile: Profile) -> None:
    node_name(enrolment.federation)
    node_name(enrolment.name)
    if bool(enrolment.hosts) != ("server_auth" in profile.usages):
        raise CertificateError(
            "C04",
            f"{enrolment.role} {enrolment.name!r}: hosts are for a role that listens, which needs "
            f"at least one; found {list(enrolment.hosts)}",
        )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    begins: float,
    ends: float,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(secrets.randbits(128) | 1)  # zero is not a serial number
        .not_valid_before(_utc(begins))
        .not_valid_after(_utc(ends))
    )


def _names(enrolment: Enrolment) -> x509.SubjectAlternativeName:
    names: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(
            peer_uri(enrolment.federation, enrolment.role, enrolment.name)
        )
    ]
    for host in map(host_name, enrolment.hosts):
        names.append(x509.DNSName(host) if isinstance(host, str) else x509.IPAddress(host))
    return x509.SubjectAlternativeName(names)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)
