"""Who stands for a plan: what its author and the sites that take part sign, and how it is checked.

Both sign the plan's digest with the identity key of their node; a prefix keeps the one from being
taken for the other.
"""

import hashlib
import time
from dataclasses import dataclass
from typing import Any, Literal

from openfed.errors import PolicyError
from openfed.parse import DIGEST, NAME, strict_json
from openfed.pki.keys import identity_public, sign, verify
from openfed.plan.digest import canonical_json
from openfed.typing import Json

Purpose = Literal["signature", "approval"]
MAX_BYTES = 4096
_KEYS = frozenset({"digest", "federation", "name", "public_key", "at", "signature"})
_LATEST = 253402300800.0  # the year 10000


@dataclass(frozen=True)
class Signed:
    """Node `name` has put its identity key under a plan: as its author, or as a site that takes
    part. One that was read has a signature that fits its own key: whose key that is, is to be
    checked."""

    purpose: Purpose
    digest: str  # of the plan
    federation: str
    name: str
    public: bytes  # 32 raw bytes
    at: float
    signature: bytes

    def json(self) -> dict[str, Json]:
        return {**_content(self), "signature": self.signature.hex()}

    def data(self) -> bytes:
        """What is kept in a file, or sent."""
        return canonical_json(self.json()) + b"\n"

    @property
    def who(self) -> str:
        """For people: name, time and key."""
        when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.at))
        return f"{self.name}, {when}, identity key {fingerprint(self.public)}"


def fingerprint(public: bytes) -> str:
    """Of an identity key, for people to compare."""
    return f"sha256:{hashlib.sha256(public).hexdigest()[:32]}"


def sign_digest(
    purpose: Purpose, digest: str, federation: str, name: str, identity_pem: bytes, now: float
) -> Signed:
    public = identity_public(identity_pem)
    bare = Signed(purpose, digest, federation, name, public, float(now), b"")
    signature = sign(identity_pem, _message(bare))
    return Signed(purpose, digest, federation, name, public, float(now), signature)


def read_signed(purpose: Purpose, data: bytes) -> Signed:
    """Raises: ValueError: not one, or its signature is not that of its key."""
    if len(data) > MAX_BYTES:
        raise ValueError(f"it has more than {MAX_BYTES} bytes")
    content = strict_json(data)
    if not isinstance(content, dict) or content.keys() != _KEYS:
        raise ValueError(f"expected the keys {', '.join(sorted(_KEYS))}")
    signed = Signed(
        purpose,
        _text(content, "digest", DIGEST.fullmatch),
        _text(content, "federation", NAME.fullmatch),
        _text(content, "name", NAME.fullmatch),
        _bytes(content, "public_key", 32),
        _time(content["at"]),
        _bytes(content, "signature", 64),
    )
    if not verify(signed.public, _message(signed), signed.signature):
        raise ValueError(f"its signature is not that of its key over this {purpose}")
    return signed


def check_signature(data: bytes, digest: str) -> Signed:
    """The author's signature of the plan of this digest.

    Raises: PolicyError: R20 it does not verify, R21 it is of another plan.
    """
    try:
        signed = read_signed("signature", data)
    except ValueError as error:
        raise PolicyError(
            "R20",
            f"plan/plan.sig: {error}; ask the author for the workspace again, or sign it again: "
            "fx plan sign",
        ) from None
    if signed.digest != digest:
        raise PolicyError(
            "R21",
            f"plan/plan.sig: expected a signature of plan {digest[:16]}, found one of plan "
            f"{signed.digest[:16]} by {signed.name}; the author signs this one with fx plan sign",
        )
    return signed


def verify_approval(data: bytes, public: bytes, digest: str, name: str) -> Signed:
    """Site `name`'s approval of the plan of this digest. `public`: the site's identity key.

    Raises: PolicyError: R22.
    """
    try:
        signed = read_signed("approval", data)
    except ValueError as error:
        raise _unusable(name, str(error)) from None
    if signed.name != name:
        raise _unusable(name, f"it is of {signed.name}")
    if signed.public != public:
        key = fingerprint(signed.public)
        raise _unusable(name, f"expected the key {fingerprint(public)}, found {key}")
    if signed.digest != digest:
        raise _unusable(name, f"expected plan {digest[:16]}, found {signed.digest[:16]}")
    return signed


def _unusable(name: str, why: str) -> PolicyError:
    remedy = f"approve the plan again at the site: fx collaborator approve -n {name}"
    return PolicyError("R22", f"the approval of {name} does not count: {why}; {remedy}")


def _content(signed: Signed) -> dict[str, Json]:
    return {
        "digest": signed.digest,
        "federation": signed.federation,
        "name": signed.name,
        "public_key": signed.public.hex(),
        "at": signed.at,
    }


def _message(signed: Signed) -> bytes:
    prefix = f"openfed plan {signed.purpose} v1".encode() + b"\0"
    return prefix + canonical_json(_content(signed))


def _text(content: dict[str, Any], key: str, fits: Any) -> str:
    value = content[key]
    if not isinstance(value, str) or not fits(value):
        raise ValueError(f"its {key} is none")
    return value


def _bytes(content: dict[str, Any], key: str, length: int) -> bytes:
    value = content[key]
    if not isinstance(value, str) or len(value) != 2 * length or value != value.lower():
        raise ValueError(f"its {key} is not {length} bytes in hexadecimal digits")
    return bytes.fromhex(value)


def _time(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("its time is no number")
    if not 0 <= value < _LATEST:
        raise ValueError("its time is none")
    return float(value)
