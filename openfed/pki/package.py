"""Requests and certificates as files that people carry between machines. Neither holds a secret.

col_N_to_agg_cert_request.zip     request.json     a node's request, and the name it goes by
agg_to_col_N_signed_cert.zip      chain.pem, authority.pem, roster.json
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from openfed.archive import pack, read_package
from openfed.errors import CertificateError
from openfed.parse import strict_json
from openfed.pki.peer import node_name
from openfed.pki.request import Request, proven_key

_REQUEST = "request.json"
_CHAIN, _ANCHORS, _ROSTER = "chain.pem", "authority.pem", "roster.json"
_PRINTED = b"openfed request fingerprint v1\0"


@dataclass(frozen=True)
class Asked:
    """A request, and what its sender calls itself: for a person to confirm, never to believe."""

    federation: str
    role: str
    name: str
    request: Request

    def fingerprint(self) -> str:
        """`sha256:` and 64 digits: the same on both sides as long as names and keys are.

        Raises C01-C03.
        """
        key = proven_key(self.request).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        names = json.dumps([self.federation, self.role, self.name]).encode()
        digest = hashlib.sha256(_PRINTED + names + key + self.request.identity)
        return f"sha256:{digest.hexdigest()}"


@dataclass(frozen=True)
class Granted:
    chain: bytes  # PEM, the leaf first
    anchors: bytes  # PEM: what to trust
    roster: bytes  # JSON


def request_file(name: str) -> str:
    return f"col_{name}_to_agg_cert_request.zip"


def certificate_file(name: str) -> str:
    return f"agg_to_col_{name}_signed_cert.zip"


def pack_request(asked: Asked) -> bytes:
    told = {
        "federation": asked.federation,
        "role": asked.role,
        "name": asked.name,
        "csr": asked.request.csr.decode("ascii"),
        "identity": asked.request.identity.hex(),
        "signature": asked.request.signature.hex(),
    }
    return pack({_REQUEST: json.dumps(told, indent=1, sort_keys=True).encode() + b"\n"})


def read_request(path: Path) -> Asked:
    """Raises UsageError (not such an archive), C04 (the name), C40 (its content)."""
    try:
        told = strict_json(read_package(path, (_REQUEST,))[_REQUEST])
        proof = (told["csr"].encode("ascii"), *(bytes.fromhex(told[k]) for k in _PROOF))
        names = (told["federation"], told["role"], told["name"])
        if not all(isinstance(name, str) for name in names):
            raise ValueError("expected text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path}: expected a request that fx writes, found something else"
        raise CertificateError("C40", message) from error
    node_name(names[0])
    node_name(names[2])
    return Asked(*names, Request(*proof))


_PROOF = ("identity", "signature")


def pack_granted(granted: Granted) -> bytes:
    return pack({_CHAIN: granted.chain, _ANCHORS: granted.anchors, _ROSTER: granted.roster})


def read_granted(path: Path) -> Granted:
    """Raises UsageError (not such an archive)."""
    found = read_package(path, (_CHAIN, _ANCHORS, _ROSTER))
    return Granted(found[_CHAIN], found[_ANCHORS], found[_ROSTER])
