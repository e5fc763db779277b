"""What a certificate says, and every check that needs no network."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from openfed.errors import CertificateError
from openfed.pki.keys import CURVES, UNREADABLE, curve_kind, load_key
from openfed.pki.peer import Peer, parse_peer_uri


@dataclass(frozen=True)
class Identity:
    """What a node shows on the network, and what it trusts there."""

    key_pem: bytes = field(repr=False)
    chain_pem: bytes  # the leaf first
    authority_pem: bytes  # one root, or two during a roll-over
    peer: Peer


def read_certificate(pem: bytes) -> x509.Certificate:
    """The first certificate of `pem`. Raises C01."""
    return read_certificates(pem)[0]


def read_certificates(pem: bytes) -> list[x509.Certificate]:
    """Every certificate of `pem`, at least one. Raises C01."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise CertificateError("C01", "expected a certificate in PEM format") from error


def inspect(pem: bytes) -> Peer:
    """Who the first certificate of `pem` speaks for. Raises C01, C17 (not one of openfed's).

    Says what is written there; whether to believe it is `check_leaf`'s question, or TLS's.
    """
    return peer_of(read_certificate(pem))


def peer_of(certificate: x509.Certificate) -> Peer:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except UNREADABLE:
        uris = []
    found = parse_peer_uri(uris[0]) if len(uris) == 1 else None
    if found is None:
        raise CertificateError(
            "C17",
            f"the certificate of {_subject(certificate)!r} names no node: expected "
            f"one openfed://federation/role/name, found {uris}",
        )
    ends = certificate.not_valid_after_utc.timestamp()
    return Peer(*found, serial=certificate.serial_number, not_after=ends)


def leaf_hosts(pem: bytes) -> frozenset[str]:
    """DNS names and IPs of a leaf."""
    names = read_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    addresses = map(str, names.value.get_values_for_type(x509.IPAddress))
    return frozenset(names.value.get_values_for_type(x509.DNSName)) | frozenset(addresses)


def check_leaf(
    chain_pem: bytes,
    key_pem: bytes,
    authority_pem: bytes,
    *,
    now: float,
    federation: str | None = None,
    role: str | None = None,
    name: str | None = None,
) -> Peer:
    """All that can be known before dialling. None leaves a fact unchecked.

    Raises C01, C05-C10, C14, C16, C17: each its own cause.
    """
    leaf, *between = read_certificates(chain_pem)
    peer = peer_of(leaf)
    _check_chain(leaf, between, read_certificates(authority_pem), peer, now)
    check_dates(leaf, peer, now)
    for code, what, expected, found in (
        ("C16", "federation", federation, peer.federation),
        ("C09", "role", role, peer.role),
        ("C08", "name", name, peer.name),
    ):
        if expected not in (None, found):
            raise CertificateError(
                code,
                f"the certificate of {_who(peer)}: expected {what} {expected!r}, found {found!r}",
            )
    if load_key(key_pem).public_key() != leaf.public_key():
        raise CertificateError(
            "C10", f"the private key is not that of the certificate of {_who(peer)}"
        )
    return peer


def check_dates(leaf: x509.Certificate, peer: Peer, now: float) -> None:
    """Raises C05 (expired) or C06 (not valid yet)."""
    _check_expiry(peer, now)
    if now < leaf.not_valid_before_utc.timestamp():
        raise CertificateError(
            "C06",
            f"the certificate of {_who(peer)} is valid from {leaf.not_valid_before_utc:%F %T} UTC, "
            "which is in this machine's future",
        )


def check_peer(
    peer: Peer, *, federation: str, role: str, now: float, denied: Callable[[Peer], bool]
) -> None:
    """What is asked of an authenticated peer on every call and every block.

    Raises C05 (expired on an open connection), C09, C16 or C18 (denied).
    """
    _check_expiry(peer, now)
    if peer.federation != federation:
        raise CertificateError(
            "C16", f"{_who(peer)} is of another federation than this one, {federation!r}"
        )
    if peer.role != role:
        raise CertificateError("C09", f"{_who(peer)} may not speak here: only a {role} may")
    if denied(peer):
        raise CertificateError("C18", f"{_who(peer)} is no longer admitted by this federation")


def _check_expiry(peer: Peer, now: float) -> None:
    if now >= peer.not_after:
        hours = (now - peer.not_after) / 3600
        raise CertificateError("C05", f"the certificate of {_who(peer)} expired {hours:.1f} h ago")


def _check_chain(
    leaf: x509.Certificate,
    between: list[x509.Certificate],
    roots: list[x509.Certificate],
    peer: Peer,
    now: float,
) -> None:
    living = [root for root in roots if now < root.not_valid_after_utc.timestamp()]
    if not living:
        last = max(root.not_valid_after_utc for root in roots)
        raise CertificateError("C14", f"the authority expired on {last:%F}")
    issued = leaf
    for issuer in [*between, None]:
        if any(_issued_by(issued, root) for root in living):
            return
        if issuer is None or not _issued_by(issued, issuer):
            break
        if now >= issuer.not_valid_after_utc.timestamp():
            break
        issued = issuer
    raise CertificateError(
        "C07", f"the certificate of {_who(peer)} was not issued by this authority"
    )


def _issued_by(issued: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
        return issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (InvalidSignature, TypeError, *UNREADABLE):
        return False


def half_life(chain_pem: bytes) -> float:
    """When a leaf is due to be renewed: seconds since the epoch."""
    leaf = read_certificate(chain_pem)
    return (leaf.not_valid_before_utc.timestamp() + leaf.not_valid_after_utc.timestamp()) / 2


def fingerprint(pem: bytes) -> str:
    """`sha256:` and the hexadecimal digits of the first certificate's DER."""
    return f"sha256:{read_certificate(pem).fingerprint(hashes.SHA256()).hex()}"


def signed_by(anchors_pem: bytes, cross_pem: bytes, message: bytes, signature: bytes) -> bool:
    """Whether a root signed `message`, or the key that a root certified in `cross_pem` (if any)."""
    roots = read_certificates(anchors_pem)
    signers = list(roots)
    if cross_pem:
        cross = read_certificate(cross_pem)
        signers += [cross] if any(_certifies(root, cross) for root in roots) else []
    return any(_signed(signer, message, signature) for signer in signers)


def unknown_roots(trusted_pem: bytes, offered_pem: bytes, chain_pem: bytes) -> list[str]:
    """Fingerprints of offered roots that are neither trusted nor certified by one that is.

    The certificates that certify them are looked for in `chain_pem`.
    """
    trusted, between = read_certificates(trusted_pem), read_certificates(chain_pem)
    vouched = [c for c in between if any(_certifies(root, c) for root in trusted)]
    return [
        f"sha256:{root.fingerprint(hashes.SHA256()).hex()}"
        for root in read_certificates(offered_pem)
        if root not in trusted
        and not any((root.subject, _key(root)) == (c.subject, _key(c)) for c in vouched)
    ]


def _key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except UNREADABLE as error:
        raise CertificateError("C01", "a certificate of a kind that openfed never makes") from error


def _certifies(root: x509.Certificate, cross: x509.Certificate) -> bool:
    """Whether `root` made `cross` another authority."""
    try:
        authority = cross.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except UNREADABLE:
        return False
    return authority and _issued_by(cross, root)


def _signed(signer: x509.Certificate, message: bytes, signature: bytes) -> bool:
    try:
        key = signer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey):
            return False
        key.verify(signature, message, ec.ECDSA(CURVES[curve_kind(key)][1]))
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


def _subject(certificate: x509.Certificate) -> str:
    try:
        return certificate.subject.rfc4514_string()
    except UNREADABLE:
        return "?"


def _who(peer: Peer) -> str:
    return f"{peer.role} {peer.name!r} of {peer.federation!r}"
