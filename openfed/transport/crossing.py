"""How an error crosses the network: as class, code and message, never as an object."""

import json

from openfed.errors import (
    CODES,
    CertificateError,
    OpenFedError,
    PolicyError,
    TaskError,
    TransportError,
    UsageError,
    WireError,
)

METADATA = "openfed-error-bin"
MOST_BYTES = 4096  # of the message: gRPC takes 8 KiB of metadata

_CLASSES: dict[str, type[OpenFedError]] = {
    kind.__name__: kind
    for kind in (
        OpenFedError,
        UsageError,
        CertificateError,
        TransportError,
        WireError,
        TaskError,
        PolicyError,
    )
}


def pack(error: OpenFedError) -> bytes:
    name = type(error).__name__
    message = error.message.encode("utf-8", "replace")[:MOST_BYTES].decode("utf-8", "ignore")
    value = {
        "class": name if name in _CLASSES else "OpenFedError",
        "code": error.code,
        "message": message,
        "permanent": getattr(error, "permanent", True),
    }
    return json.dumps(value, ensure_ascii=False).encode()


def unpack(data: bytes) -> OpenFedError:
    """The error that the other side raised, or a T11 if this version cannot name it."""
    try:
        value = json.loads(data)
        kind, code, message = _CLASSES[value["class"]], value["code"], value["message"]
        permanent = value["permanent"] is not False
        known = code in CODES and isinstance(message, str)
    except (ValueError, TypeError, KeyError, RecursionError):
        known = False
    if not known:
        return TransportError("T11", f"the peer failed with {data[:200]!r}", permanent=True)
    message = "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in message
    )
    if kind is TransportError:
        return TransportError(code, message, permanent=permanent)
    return kind(code, message)
