"""Addresses: `host:port` and `[IPv6]:port`."""

from openfed.errors import TransportError


def split_address(address: str) -> tuple[str, int]:
    """Raises T13. The host without brackets."""
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not bare or (":" in bare) != bracketed or not (port.isascii() and port.isdigit()):
        raise TransportError("T13", f"{address!r}: expected host:port", permanent=True)
    if int(port) > 65535:
        raise TransportError("T13", f"{address!r}: expected a port up to 65535", permanent=True)
    return bare, int(port)
