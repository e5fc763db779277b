"""Who a certificate speaks for: the facts, and the rules of the names in them."""

import ipaddress
import re
from dataclasses import dataclass

from openfed.errors import CertificateError
from openfed.parse import NAME, host, is_ip

AGGREGATOR = "aggregator"
COLLABORATOR = "collaborator"
AUTHORITY = "authority"

_URI = re.compile(rf"openfed://({NAME.pattern})/([a-z]+)/({NAME.pattern})")


@dataclass(frozen=True)
class Peer:
    """Who is at the other end, as its certificate says."""

    federation: str
    role: str
    name: str
    serial: int
    not_after: float  # seconds since the epoch


def node_name(name: str) -> str:
    """A name that is also a safe folder and part of a URI. Raises C04."""
    if not NAME.fullmatch(name) or name.lower() == AUTHORITY:
        raise CertificateError(
            "C04",
            f"{name!r} cannot name a node or a federation: expected 1 to 63 letters, digits, "
            f"'-' or '_', beginning and ending with a letter or digit, and not {AUTHORITY!r}",
        )
    return name


def host_name(text: str) -> str | ipaddress.IPv4Address | ipaddress.IPv6Address:
    """A host as a certificate names it: a DNS name, or an address. Raises C04."""
    try:
        name = host(text)
    except ValueError:
        message = f"{text!r} is neither a DNS name nor an IP address"
        raise CertificateError("C04", message) from None
    return ipaddress.ip_address(name) if is_ip(name) else name.lower()


def peer_uri(federation: str, role: str, name: str) -> str:
    return f"openfed://{federation}/{role}/{name}"


def parse_peer_uri(uri: str) -> tuple[str, str, str] | None:
    """`openfed://<federation>/<role>/<name>` -> its three parts; None for any other URI."""
    found = _URI.fullmatch(uri)
    return (found[1], found[2], found[3]) if found else None
