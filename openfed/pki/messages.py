"""What nodes and the authority write to each other: JSON objects with fixed keys, within limits."""

import json
import re
from collections.abc import Mapping
from typing import Any

from openfed.errors import CODES, CertificateError
from openfed.parse import strict_json
from openfed.pki.request import MOST_BYTES, Request

MOST_ASKED = 2 * MOST_BYTES
"""Bytes of what a node sends."""
MOST_ANSWERED = 20 << 20
"""Bytes of what it gets: the roster grows with the federation."""
_MOST_MESSAGE = 1000

_CSR = re.compile(rf"[\x20-\x7e\n\r]{{1,{MOST_BYTES}}}")
_IDENTITY, _SIGNATURE = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{128}")


def write_request(request: Request) -> dict[str, str]:
    """A request as three entries of an object."""
    csr = request.csr.decode("ascii")
    return {"csr": csr, "identity": request.identity.hex(), "signature": request.signature.hex()}


def read_request(told: Mapping[str, Any]) -> Request:
    """The request in those three entries; its proofs are not checked here. Raises C61."""
    csr = text_of(told, "csr", _CSR).encode()
    identity = bytes.fromhex(text_of(told, "identity", _IDENTITY))
    return Request(csr, identity, bytes.fromhex(text_of(told, "signature", _SIGNATURE)))


def read_object(data: bytes | str, keys: str) -> dict[str, Any]:
    """A JSON object of exactly these keys (in one text, spaces between). Raises C61."""
    try:
        told = strict_json(data)
    except ValueError:
        raise CertificateError("C61", "expected one JSON object") from None
    return check_object(told, keys)


def check_object(told: object, keys: str) -> dict[str, Any]:
    if not isinstance(told, dict) or set(told) != set(keys.split()):
        raise CertificateError("C61", f"expected one JSON object with the keys {keys}")
    return told


def text_of(told: Mapping[str, Any], key: str, form: re.Pattern[str]) -> str:
    value = told[key]
    if not isinstance(value, str) or not form.fullmatch(value):
        raise CertificateError("C61", f"{key!r} is not of the form that it has")
    return value


def write_refusal(error: CertificateError) -> bytes:
    return json.dumps({"code": error.code, "message": error.message}).encode()


def read_answer(data: bytes, keys: str) -> dict[str, bytes]:
    """Texts by key. Raises what the authority refused it with; C64: this is no answer of its."""
    try:
        told = strict_json(data)
        if set(told) == {"code", "message"} and told["code"] in CODES:
            raise CertificateError(told["code"], str(told["message"])[:_MOST_MESSAGE])
        found = {key: told[key].encode() for key in keys.split()}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CertificateError("C64", "the authority's answer cannot be read") from None
    return found
