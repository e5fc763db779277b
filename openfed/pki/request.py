"""What a node asks of the authority: two public keys, and proof that it holds both private halves.

Nothing else in a request counts: name, role and hosts come from the operator's enrolment record.
"""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from openfed.errors import CertificateError
from openfed.pki.keys import (
    CURVES,
    UNREADABLE,
    curve_kind,
    identity_public,
    load_key,
    sign,
    verify,
)
from openfed.pki.peer import node_name

MOST_BYTES = 16 << 10
_SIGNED = b"openfed certificate request v1\0"


@dataclass(frozen=True)
class Request:
    csr: bytes  # PEM, signed by the leaf key
    identity: bytes  # 32 raw bytes: the public half of the node's Ed25519 key
    signature: bytes  # by the identity key, over the csr


def create_request(name: str, key_pem: bytes, identity_pem: bytes) -> Request:
    """`name` is only for people who read the request; see the module."""
    key = load_key(key_pem)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_name(name))])
    csr = x509.CertificateSigningRequestBuilder().subject_name(subject)
    pem = csr.sign(key, CURVES[curve_kind(key)][1]).public_bytes(Encoding.PEM)
    return Request(pem, identity_public(identity_pem), sign(identity_pem, _SIGNED + pem))


def proven_key(request: Request) -> ec.EllipticCurvePublicKey:
    """The leaf's public key, both proofs checked. Raises C01, C02 or C03."""
    if len(request.csr) > MOST_BYTES:
        raise CertificateError(
            "C01", f"a request of {len(request.csr)} bytes; at most {MOST_BYTES}"
        )
    try:
        csr = x509.load_pem_x509_csr(request.csr)
        key = csr.public_key()
        curve_kind(key)
        signed = csr.is_signature_valid
    except UNREADABLE as error:
        raise CertificateError("C01", "the certificate request is not one in PEM format") from error
    assert isinstance(key, ec.EllipticCurvePublicKey)
    if not signed:
        raise CertificateError("C03", "the request is not signed by the key that it names")
    if not verify(request.identity, _SIGNED + request.csr, request.signature):
        raise CertificateError("C03", "the request is not signed by the identity key that it names")
    return key
