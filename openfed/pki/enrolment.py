"""Enrolment by token, at the node: from a token and a pin to keys, certificate and trust.

The pin (the fingerprint of the authority's root) comes to the site from the operator. Until the
server has shown that it is that authority, it is sent nothing but the question who it is.
"""

import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from openfed.errors import CertificateError, OpenFedError, TransportError
from openfed.parse import split_address
from openfed.pki.disk import read
from openfed.pki.files import create_keys, install, install_roster, make_request
from openfed.pki.leaf import fingerprint, peer_of, read_certificate, read_certificates
from openfed.pki.messages import MOST_ANSWERED, read_answer
from openfed.pki.peer import AUTHORITY
from openfed.pki.roster import read_roster
from openfed.pki.token import Token, apply_with, write_application

Dial = Callable[[str, int, float], socket.socket]
"""Host, port, patience in seconds -> a connection; raises OSError, OpenFedError."""

PATIENCE_S = 20.0
"""For a connection, and for each piece of an answer."""
_MOST_ROOTS = 64 << 10
_PIN = re.compile(r"sha256:[0-9a-f]{64}")


def straight(host: str, port: int, patience_s: float) -> socket.socket:
    """Through no proxy, whatever the environment says."""
    return socket.create_connection((host, port), patience_s)


def enroll(
    cert_dir: Path,
    token: Token,
    pin: str,
    federation: str,
    now: float | None = None,
    *,
    dial: Dial = straight,
) -> list[Path]:
    """Enrol the token's node, with keys that are born below `cert_dir`; the files written.

    After an interruption it can be done again: the same keys get the same certificate.
    Raises: CertificateError, before anything was sent: C38 (another authority is trusted here), C53
    (a token of another federation), C58 (wrong pin), C59 (not the authority), C67 (no pin); then
    what the authority refuses with, and C64. TransportError C60, and what `dial` raises.
    """
    at = time.time() if now is None else now
    pin = parse_pin(pin)
    if token.federation != federation:
        raise CertificateError(
            "C53", f"the token is of federation {token.federation!r}, the plan of {federation!r}"
        )
    roots = _ask(token, dial, "GET", "/authority", at, most=_MOST_ROOTS)
    root = _pinned(roots, pin, token.address)
    _check_trusted(cert_dir, roots)
    written = create_keys(cert_dir, token.name)
    application = write_application(apply_with(token, make_request(cert_dir, token.name)))
    answer = _ask(token, dial, "POST", "/enrol", at, root=root, body=application)
    return [*written, *_install(cert_dir, token, read_answer(answer, _PARTS), root, at)]


_PARTS = "chain anchors roster"


def parse_pin(text: str) -> str:
    """Raises C67."""
    pin = text.strip().lower()
    if not _PIN.fullmatch(pin):
        raise CertificateError(
            "C67", f"expected sha256: and 64 hexadecimal digits, got {text[:80]!r}"
        )
    return pin


def _pinned(roots: bytes, pin: str, address: str) -> bytes:
    """The root (PEM) that the pin names; two are there during a roll-over."""
    found = [root.public_bytes(Encoding.PEM) for root in read_certificates(roots)]
    for root in found:
        if fingerprint(root) == pin:
            return root
    shown = ", ".join(map(fingerprint, found))
    raise CertificateError("C58", f"expected the authority {pin}, found {shown} at {address}")


def _check_trusted(cert_dir: Path, roots: bytes) -> None:
    """What is trusted here has to be among them; `install` looks at how they hang together."""
    public = cert_dir / "authority.pem"
    if public.exists() and not set(read_certificates(read(public))) & set(read_certificates(roots)):
        raise CertificateError("C38", f"{public} is of another authority than the pinned one")


def _install(
    cert_dir: Path, token: Token, told: dict[str, bytes], root: bytes, now: float
) -> list[Path]:
    """All is checked before anything is written. It came from the authority that the pin names."""
    chain, anchors, roster = told["chain"], told["anchors"], told["roster"]
    if read_certificate(root) not in read_certificates(anchors):
        raise CertificateError("C64", "the pinned root is not among those that are to be trusted")
    read_roster(roster, anchors)
    who = {"federation": token.federation, "role": token.role}
    written = install(cert_dir, token.name, chain, anchors, **who, now=now)
    return [*written, *install_roster(cert_dir, roster)]


def _ask(
    token: Token,
    dial: Dial,
    method: str,
    path: str,
    now: float,
    *,
    root: bytes = b"",
    body: bytes | None = None,
    most: int = MOST_ANSWERED,
) -> bytes:
    """What the listener answers. With `root` only the authority that it certified is asked."""
    host, port = split_address(token.address)
    asking = http.client.HTTPSConnection(host, port)
    try:
        asking.sock = _context(root).wrap_socket(dial(host, port, PATIENCE_S), server_hostname=host)
        if root:
            _check_authority(asking.sock, token)
        asking.request(method, path, body)
        answer = asking.getresponse()
        found = answer.read(most + 1)
    except ssl.SSLCertVerificationError as error:
        message = f"{token.address} is not of the pinned authority: {error.verify_message}"
        raise CertificateError("C59", message) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(token, error, now) from error
    finally:
        asking.close()
    if answer.status not in (200, 403) or len(found) > most:
        message = f"{token.address} answered {answer.status} with {len(found)} bytes"
        raise CertificateError("C64", message)
    return found


def _unreachable(token: Token, error: Exception, now: float) -> OpenFedError:
    if now >= token.ends:
        hours = (now - token.ends) / 3600
        return CertificateError("C52", f"the token expired {hours:.1f} h ago")
    return TransportError("C60", f"the authority at {token.address} does not answer: {error}")


def _context(root: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # what counts is the role, under the pinned root
    if root:
        context.load_verify_locations(cadata=root.decode("ascii"))
    else:
        context.verify_mode = ssl.CERT_NONE
    return context


def _check_authority(connection: ssl.SSLSocket, token: Token) -> None:
    leaf = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True) or b"")
    peer = peer_of(leaf)
    if (peer.federation, peer.role) != (token.federation, AUTHORITY):
        raise CertificateError(
            "C59",
            f"expected the authority of {token.federation!r} at {token.address}, found "
            f"{peer.role} {peer.name!r} of {peer.federation!r}",
        )
