"""Keys: ECDSA ones for certificates, an Ed25519 one that signs for a node. PEM bytes in and out."""

from collections.abc import Callable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from openfed.errors import CertificateError

CURVES: dict[str, tuple[ec.EllipticCurve, hashes.SHA256 | hashes.SHA384]] = {
    "P-256": (ec.SECP256R1(), hashes.SHA256()),
    "P-384": (ec.SECP384R1(), hashes.SHA384()),
}
_BY_CURVE = {curve.name: name for name, (curve, _) in CURVES.items()}


UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for certificates and requests that are none, or of a kind that it does
not know; much of it only when a part is looked at."""


def create_key(kind: str = "P-256", passphrase: bytes | None = None) -> bytes:
    """A new ECDSA private key (PKCS 8, PEM), encrypted when there is a passphrase."""
    return _pem(ec.generate_private_key(CURVES[kind][0]), passphrase)


def create_identity_key() -> bytes:
    """A new Ed25519 private key (PKCS 8, PEM): long-lived, signs for its node."""
    return _pem(Ed25519PrivateKey.generate(), None)


def _pem(key: ec.EllipticCurvePrivateKey | Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    how: KeySerializationEncryption = (
        BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    )
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how)


def load_key(pem: bytes, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """Raises C01 (unreadable), C02 (not P-256 or P-384), C15 (passphrase missing or wrong)."""
    key = _load(pem, passphrase)
    curve_kind(key)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _load(pem: bytes, passphrase: bytes | None) -> object:
    if b"ENCRYPTED" not in pem:
        passphrase = None  # the library refuses a passphrase that is not needed
    elif not passphrase:
        raise CertificateError("C15", "the private key is encrypted and no passphrase was given")
    try:
        return load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError) as error:
        if passphrase:
            raise CertificateError("C15", "the passphrase does not open the key") from error
        raise CertificateError("C01", "the private key is not one in PEM format") from error


def curve_kind(key: object) -> str:
    """`P-256` or `P-384` of a public or private key. Raises C02 for every other kind."""
    curve = getattr(key, "curve", None)
    kind = _BY_CURVE.get(curve.name) if isinstance(curve, ec.EllipticCurve) else None
    if kind is None:
        found = curve.name if isinstance(curve, ec.EllipticCurve) else type(key).__name__
        raise CertificateError("C02", f"expected an ECDSA key on P-256 or P-384, found {found}")
    return kind


def identity_public(identity_pem: bytes) -> bytes:
    """The 32 raw bytes of an identity key's public half."""
    return _identity(identity_pem).public_key().public_bytes_raw()


def sign(identity_pem: bytes, message: bytes) -> bytes:
    """64 bytes: the Ed25519 signature of `message`."""
    return _identity(identity_pem).sign(message)


@dataclass(frozen=True)
class Signer:
    """An identity key that is loaded once, for who signs often."""

    public: bytes  # 32 raw bytes
    sign: Callable[[bytes], bytes]


def signer(identity_pem: bytes) -> Signer:
    key = _identity(identity_pem)
    return Signer(key.public_key().public_bytes_raw(), key.sign)


def verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of `message` under the 32 raw bytes `public`."""
    return verifier(public)(message, signature)


def verifier(public: bytes) -> Callable[[bytes, bytes], bool]:
    """(message, signature) -> whether it is one under the 32 raw bytes `public`."""

    def verify(message: bytes, signature: bytes) -> bool:
        try:
            key.verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    try:
        key = Ed25519PublicKey.from_public_bytes(public)
    except ValueError:
        return lambda message, signature: False
    return verify


def _identity(pem: bytes) -> Ed25519PrivateKey:
    key = _load(pem, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise CertificateError("C02", f"expected an Ed25519 key, found {type(key).__name__}")
    return key
