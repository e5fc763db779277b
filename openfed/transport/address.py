"""Addresses: `host:port` and `[IPv6]:port`."""

from openfed import parse
from openfed.errors import TransportError


def split_address(address: str) -> tuple[str, int]:
    """Raises T13. The host without brackets."""
    try:
        return parse.split_address(address)
    except ValueError as error:
        raise TransportError("T13", str(error), permanent=True) from None
