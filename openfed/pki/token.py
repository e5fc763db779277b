"""A one-time token: what it says, how it travels as text, and how holding it is proven.

The secret never travels. A key derived from it and from all that the token is bound to makes an
HMAC over the request, and is all that the authority keeps of the secret: a token whose name,
federation or end was changed gives another key, and proves nothing.
"""

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
import secrets
from dataclasses import dataclass, field

from openfed.errors import CertificateError
from openfed.parse import DIGEST, NAME, join_address, split_address
from openfed.pki.messages import read_object, read_request, text_of, write_request
from openfed.pki.request import Request

LIFE_S = 24 * 3600.0
PREFIX = "openfed1."
_SECRET_BYTES, _SUM_BYTES, _ENDS_BYTES = 32, 6, 8
_LONGEST = 2048
_ID = re.compile(r"[0-9a-f]{16}")
_BOUND, _NAMED, _PROVEN = (
    f"openfed enrolment {what} v1\0".encode() for what in ("key", "id", "proof")
)


@dataclass(frozen=True)
class Token:
    """Lets its holder enrol `name` once, until `ends`."""

    federation: str
    role: str
    name: str
    ends: int  # seconds since the epoch
    address: str  # where the authority takes requests: host:port
    secret: bytes = field(repr=False)  # 32 random bytes

    @property
    def id(self) -> str:
        """16 hexadecimal digits that say which token it is, and nothing of the secret."""
        return hashlib.sha256(_NAMED + self.secret).hexdigest()[:16]

    @property
    def key(self) -> bytes:
        """32 bytes that prove the token and verify the proof."""
        bound = json.dumps([self.federation, self.role, self.name, self.ends]).encode()
        return hmac.digest(self.secret, _BOUND + bound, "sha256")


def mint(federation: str, role: str, name: str, ends: float, address: str) -> Token:
    """A new token. Raises `ValueError`: `address` is not host:port."""
    where = join_address(*split_address(address))
    return Token(
        federation, role, name, math.floor(ends), where, secrets.token_bytes(_SECRET_BYTES)
    )


def token_text(token: Token) -> str:
    """One line without spaces, with a checksum: survives mail and copy, or is seen not to have."""
    facts = "\n".join((token.federation, token.role, token.name, token.address)).encode()
    body = token.ends.to_bytes(_ENDS_BYTES, "big") + token.secret + facts
    return PREFIX + base64.urlsafe_b64encode(body + _checksum(body)).rstrip(b"=").decode()


def parse_token(text: str) -> Token:
    """The token in `text`, which may have been wrapped into lines. Raises C50: not whole."""
    bare = "".join(text[: 2 * _LONGEST].split())
    coded = bare.removeprefix(PREFIX)
    if coded == bare or len(bare) > _LONGEST:
        raise CertificateError("C50", f"expected a token, which begins with {PREFIX}")
    try:
        data = base64.b64decode(coded + "=" * (-len(coded) % 4), altchars=b"-_", validate=True)
        body, found = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
        if found != _checksum(body):
            raise ValueError("its checksum does not fit")
        return _token(body)
    except (ValueError, binascii.Error):
        raise CertificateError(
            "C50",
            f"the token was cut off or mistyped: {len(bare)} characters that do not fit together",
        ) from None


def _token(body: bytes) -> Token:
    facts = body[_ENDS_BYTES + _SECRET_BYTES :].decode("ascii").split("\n")
    federation, role, name, address = facts
    if not all(NAME.fullmatch(each) for each in (federation, role, name)):
        raise ValueError("a name that cannot be one")
    split_address(address)
    ends = int.from_bytes(body[:_ENDS_BYTES], "big")
    return Token(federation, role, name, ends, address, body[_ENDS_BYTES:][:_SECRET_BYTES])


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + body).digest()[:_SUM_BYTES]


@dataclass(frozen=True)
class Application:
    """What a node sends to be enrolled: its request, for whom, and the proof of its token."""

    token: str  # its id
    federation: str
    role: str
    name: str
    request: Request
    proof: bytes


def apply_with(token: Token, request: Request) -> Application:
    proof = prove(token.key, request)
    return Application(token.id, token.federation, token.role, token.name, request, proof)


def prove(key: bytes, request: Request) -> bytes:
    """32 bytes: the HMAC of all that the request says."""
    parts = (request.csr, request.identity, request.signature)
    said = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.digest(key, _PROVEN + said, "sha256")


def write_application(application: Application) -> bytes:
    told = {
        "token": application.token,
        "federation": application.federation,
        "role": application.role,
        "name": application.name,
        "proof": application.proof.hex(),
    }
    return json.dumps(told | write_request(application.request)).encode()


def read_application(data: bytes) -> Application:
    """Raises C61: not what a node sends."""
    told = read_object(data, "token federation role name proof csr identity signature")
    token, proof = text_of(told, "token", _ID), bytes.fromhex(text_of(told, "proof", DIGEST))
    federation, role, name = (text_of(told, key, NAME) for key in ("federation", "role", "name"))
    return Application(token, federation, role, name, read_request(told), proof)
