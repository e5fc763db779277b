"""Why a connection fails, found by dialling once more with plain sockets.

gRPC tells neither side ("Socket closed") and never shows a client the server's certificate, so the
same probe also runs before the first call: the server must be the aggregator of our federation.
(The channel itself insists on our authority, on the host name and on the usage serverAuth,
which beside an aggregator's only the enrolment listener's certificate has, and that names no host;
what the probe adds is the role and federation by name.)
"""

import socket
import ssl
from collections.abc import Callable

from cryptography import x509

from openfed.errors import CertificateError, TransportError
from openfed.files import readable
from openfed.parse import Proxy
from openfed.pki.leaf import Identity, check_leaf, peer_of
from openfed.pki.peer import AGGREGATOR
from openfed.transport.address import split_address
from openfed.transport.proxy import connect

PATIENCE_S = 5.0
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_*
_HOST, _ADDRESS, _PURPOSE = 62, 64, 26

_ALERTS = ("CERTIFICATE", "UNKNOWN_CA", "ACCESS_DENIED", "DECRYPT_ERROR")  # in names of TLS alerts
_VERSION = ("PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "HANDSHAKE_FAILURE")

Cause = TransportError | CertificateError | None
Dial = Callable[[], socket.socket]


def diagnose(
    address: str,
    identity: Identity,
    now: float,
    *,
    server_name: str | None = None,
    proxy: Proxy | None = None,
) -> Cause:
    """What keeps `identity` from the aggregator at `address`; None if nothing does (now).

    `now` in seconds since the epoch. Blocks for a few times `PATIENCE_S` at most.
    """
    host, port = split_address(address)

    def dial() -> socket.socket:
        return connect(host, port, PATIENCE_S, proxy=proxy)

    cause = _tried(address, dial, server_name or host, identity, now)
    if cause and cause.code == "C24":
        # A server that is going down closes connections as well; a moment later it is gone.
        cause = _tried(address, dial, server_name or host, identity, now)
    return cause


def _tried(address: str, dial: Dial, name: str, identity: Identity, now: float) -> Cause:
    try:
        check_leaf(identity.chain_pem, identity.key_pem, identity.authority_pem, now=now)
        with dial() as raw:
            return _check_server(raw, address, name, identity)
    except (CertificateError, TransportError) as error:
        return error
    except ssl.SSLCertVerificationError as error:
        return _distrusted(error, address, dial, name, identity)
    except ssl.SSLError as error:
        return _tls_fault(error, address, identity)
    except socket.gaierror as error:
        host, _ = split_address(address)
        return TransportError("T04", f"{host!r} does not resolve: {error.strerror}")
    except ConnectionRefusedError:
        return TransportError("T05", f"nothing listens at {address}")
    except ConnectionResetError:
        return TransportError("T09", f"{address} closed the connection")
    except OSError as error:
        return TransportError("T06", f"{address} does not answer: {error}")


def _check_server(raw: socket.socket, address: str, name: str, identity: Identity) -> Cause:
    with _context(identity).wrap_socket(raw, server_hostname=name) as tls:
        leaf = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
        if cause := _not_aggregator(leaf, address, identity):
            return cause
        if tls.selected_alpn_protocol() != "h2":
            return TransportError("T10", f"{address} does not speak gRPC", permanent=True)
        return None if _welcomed(tls) else _refused(address, identity, "it closed the connection")


def _welcomed(tls: ssl.SSLSocket) -> bool:
    """In TLS 1.3 a server judges our certificate after our handshake is over.

    Its first bytes (HTTP/2 settings) say that it was taken. If not, some send an alert; gRPC just
    closes.
    """
    try:
        return tls.recv(1) != b""
    except (ConnectionResetError, ssl.SSLEOFError):
        return False


def _not_aggregator(leaf: x509.Certificate, address: str, identity: Identity) -> Cause:
    try:
        peer = peer_of(leaf)
    except CertificateError as error:
        return CertificateError("C23", f"the server at {address}: {error.message}")
    expected = (identity.peer.federation, AGGREGATOR)
    if (peer.federation, peer.role) == expected:
        return None
    return CertificateError(
        "C23",
        f"the server at {address} shows the certificate of {peer.role} {peer.name!r} of "
        f"{peer.federation!r}; expected the {AGGREGATOR} of {identity.peer.federation!r}",
    )


def _distrusted(
    error: ssl.SSLCertVerificationError, address: str, dial: Dial, name: str, identity: Identity
) -> Cause:
    """Our side refused the server's certificate: fetch it, to say whose it is."""
    leaf = _shown(dial, name, identity)
    if error.verify_code in (_EXPIRED, _NOT_YET):
        dates = leaf and f" ({leaf.not_valid_before_utc:%F %T} to {leaf.not_valid_after_utc:%F %T})"
        return CertificateError(
            "C20",
            f"the certificate of {address} is out of date{dates or ''}: {error.verify_message}",
        )
    if error.verify_code in (_HOST, _ADDRESS, _PURPOSE):
        if leaf and (cause := _not_aggregator(leaf, address, identity)):
            return cause
        return CertificateError(
            "C22", f"the certificate of {address} does not name {name!r}{_named(leaf)}"
        )
    return CertificateError(
        "C21",
        f"the certificate of {address} was not issued by our authority: {error.verify_message}",
    )


def _shown(dial: Dial, name: str, identity: Identity) -> x509.Certificate | None:
    """The leaf that the server shows, unverified: only ever part of a message."""
    context = _context(identity)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with dial() as raw, context.wrap_socket(raw, server_hostname=name) as tls:
            return x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    except (OSError, ValueError, TransportError):
        return None


def _named(leaf: x509.Certificate | None) -> str:
    if leaf is None:
        return ""
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [
        *names.get_values_for_type(x509.DNSName),
        *map(str, names.get_values_for_type(x509.IPAddress)),
    ]
    return f"; it names {', '.join(hosts) or 'no host'}"


def _tls_fault(error: ssl.SSLError, address: str, identity: Identity) -> Cause:
    reason = error.reason or str(error)
    if any(part in reason for part in _VERSION):
        return TransportError("T08", f"{address} refuses TLS 1.3 ({reason})", permanent=True)
    if any(part in reason for part in _ALERTS):
        return _refused(address, identity, reason)
    if isinstance(error, ssl.SSLEOFError):
        return TransportError("T09", f"{address} closed the connection during the handshake")
    return TransportError(
        "T07", f"what listens at {address} does not speak TLS ({reason})", permanent=True
    )


def _refused(address: str, identity: Identity, reason: str) -> CertificateError:
    peer = identity.peer
    return CertificateError(
        "C24",
        f"{address} refuses the certificate of {peer.role} {peer.name!r} of "
        f"{peer.federation!r} ({reason})",
    )


def _context(identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=identity.authority_pem.decode("ascii"))
    context.set_alpn_protocols(["h2"])
    with readable(identity.chain_pem) as chain, readable(identity.key_pem) as key:
        context.load_cert_chain(chain, key)
    return context
