"""The roster: who takes part and who no longer does, signed by the authority.

    {"roster": {...}, "cross": "<PEM>" or "", "signature": "<hex>"}

The signature (ECDSA, DER) is over the canonical JSON of `roster`. `cross` is for readers who still
trust the root before the one that signed: its key, certified by theirs.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from openfed.errors import CertificateError
from openfed.parse import strict_json
from openfed.pki.authority import Authority, sign_as_authority
from openfed.pki.leaf import inspect, signed_by
from openfed.pki.peer import COLLABORATOR, Peer

MOST_BYTES = 16 << 20
_SIGNED = b"openfed roster v1\0"


@dataclass(frozen=True)
class Member:
    role: str
    name: str
    identity: bytes  # 32 raw bytes: an Ed25519 public key
    revoked: bool


@dataclass(frozen=True)
class Roster:
    federation: str
    number: int  # grows with every change
    at: float
    members: tuple[Member, ...]
    revoked_serials: frozenset[int]

    def denied(self, peer: Peer) -> bool:
        """Revoked by name or by serial, or not on the roster under this federation and role."""
        member = self._by_name.get(peer.name)
        if member is None or member.revoked or peer.serial in self.revoked_serials:
            return True
        return (self.federation, member.role) != (peer.federation, peer.role)

    def identity(self, name: str) -> bytes | None:
        """The public key of a member; None for one that is unknown or revoked."""
        member = self._by_name.get(name)
        return member.identity if member and not member.revoked else None

    def revoked(self, name: str) -> bool:
        """Whether a member of this name is shut out; not so a name that nobody knows."""
        member = self._by_name.get(name)
        return member is not None and member.revoked

    @cached_property
    def collaborators(self) -> frozenset[str]:
        """The names of those who may take part."""
        found = (member for member in self.members if member.role == COLLABORATOR)
        return frozenset(member.name for member in found if not member.revoked)

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {member.name: member for member in self.members}


def sign_roster(roster: Roster, authority: Authority, cross: bytes = b"") -> bytes:
    """JSON text. `cross` is the certificate of `authority`'s key by the root before it (PEM)."""
    told = _told(roster)
    signature = sign_as_authority(authority, _message(told)).hex()
    whole = {"roster": told, "cross": cross.decode("ascii"), "signature": signature}
    return json.dumps(whole, indent=1, sort_keys=True).encode() + b"\n"


def read_roster(data: bytes, anchors_pem: bytes) -> Roster:
    """Raises C37: damaged, not signed by this authority, of another federation."""
    if len(data) > MOST_BYTES:
        raise _refused(f"{len(data)} bytes; at most {MOST_BYTES}")
    try:
        whole = strict_json(data)
        told, cross = whole["roster"], whole["cross"].encode("ascii")
        roster, signature = _roster(told), bytes.fromhex(whole["signature"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused("it is not one that fx writes") from error
    if not signed_by(anchors_pem, cross, _message(told), signature):
        raise _refused("it is not signed by this authority")
    expected = inspect(anchors_pem).federation
    if roster.federation != expected:
        raise _refused(f"it is of federation {roster.federation!r}; expected {expected!r}")
    return roster


def _told(roster: Roster) -> dict[str, Any]:
    members = sorted(roster.members, key=lambda member: member.name)
    return {
        "federation": roster.federation,
        "number": roster.number,
        "at": roster.at,
        "members": [
            {
                "role": member.role,
                "name": member.name,
                "identity": member.identity.hex(),
                "revoked": member.revoked,
            }
            for member in members
        ],
        "revoked_serials": sorted(f"{serial:032x}" for serial in roster.revoked_serials),
    }


def _roster(told: dict[str, Any]) -> Roster:
    members = tuple(
        Member(
            str(each["role"]),
            str(each["name"]),
            bytes.fromhex(each["identity"]),
            bool(each["revoked"]),
        )
        for each in told["members"]
    )
    if len({member.name for member in members}) < len(members):
        raise ValueError("a name is there twice")
    revoked = frozenset(int(serial, 16) for serial in told["revoked_serials"])
    number, at = int(told["number"]), float(told["at"])
    return Roster(str(told["federation"]), number, at, members, revoked)


def _message(told: object) -> bytes:
    return _SIGNED + json.dumps(told, sort_keys=True, separators=(",", ":")).encode()


def _refused(why: str) -> CertificateError:
    return CertificateError("C37", f"the roster is refused: {why}")
