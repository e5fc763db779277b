"""The only door to gRPC: what must be in the environment before it is imported.

With ECDSA certificates no TLS 1.2 suite of this list can be chosen, which leaves TLS 1.3 alone;
gRPC for Python has no other way to say so.
"""

import os
import sys

from openfed.errors import TransportError

SETTINGS = {
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES256-GCM-SHA384",
    "GRPC_ENABLE_FORK_SUPPORT": "0",  # nothing here forks; its handlers cost time and deadlock
    "GRPC_DNS_RESOLVER": "native",  # the system's, so that the probe and gRPC agree
}


def _prepare() -> None:
    wrong = {key: value for key, value in SETTINGS.items() if os.environ.get(key) != value}
    if wrong and "grpc" in sys.modules:
        wanted = " ".join(f"{key}={value}" for key, value in wrong.items())
        raise TransportError("T01", f"grpc was imported before {wanted} was set", permanent=True)
    os.environ.update(wrong)
    if os.environ.get("GRPC_VERBOSITY", "").upper() not in ("INFO", "DEBUG"):
        os.environ.pop("GRPC_VERBOSITY", None)  # it would hide the handshakes that fail


_prepare()

import grpc  # noqa: E402
import grpc.aio  # noqa: E402

__all__ = ["SETTINGS", "grpc"]
