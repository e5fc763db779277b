"""What collaborators and the aggregator say to each other: plain values, no protobuf.

Every message carries a `Stamp`. Who speaks is never in a message: it is in the certificate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from openfed.pki.peer import Peer as Peer
from openfed.pki.request import Request
from openfed.typing import Json

PROTOCOL = (2, 1)
"""(major, minor): another major is refused by name, an unknown minor is tolerated."""

CAPABILITIES: tuple[str, ...] = ("packet/2",)

BLOCK = 2 << 20
"""Most bytes of one block of a transfer: each costs Python some work; larger ones cost fresh
memory."""

ON_THEIR_WAY = 16 << 20
"""Bytes of blocks that the aggregator should have to hold when all sites transfer at once."""


def block_size(sites: int) -> int:
    """Bytes of a block where so many sites take part (0: nobody knows): `BLOCK` for up to eight,
    then less, as each stream has one in memory; never less than a chunk of float64."""
    return max(512 << 10, min(BLOCK, ON_THEIR_WAY // sites)) if sites else 512 << 10


ENOUGH = 2**63 - 1
"""The offset that asks for no more of an upload: it is whole already, or no longer wanted."""


class RunState(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABORTED = "aborted"

    @property
    def ended(self) -> bool:
        return self in (RunState.COMPLETED, RunState.FAILED, RunState.ABORTED)


@dataclass(frozen=True)
class Stamp:
    """Which federation, run and plan a message belongs to, and which try of which operation."""

    federation: str
    run: str  # empty in a hello: the aggregator's answer names it
    plan_digest: str
    operation: str  # random, the same for every attempt of one operation
    attempt: int = 1
    protocol: tuple[int, int] = PROTOCOL
    capabilities: tuple[str, ...] = CAPABILITIES


@dataclass(frozen=True)
class Hello:
    stamp: Stamp
    facts: Mapping[str, str] = field(default_factory=dict)  # versions, isolation level; for people
    approval: bytes = b""  # of the plan, signed by the site; empty in a trial


@dataclass(frozen=True)
class Head:
    """How far the aggregator's ledger goes: its last entry, as it has signed it."""

    number: int  # 0: there is none
    hash: str  # SHA-256, hex
    signature: bytes = b""  # 64 bytes; empty: the aggregator has no identity key


@dataclass(frozen=True)
class Welcome:
    stamp: Stamp  # with the run's id
    state: RunState
    lease_s: float
    identity: bytes = b""  # 32 bytes: the key that signs heads and receipts; empty: nothing does
    head: Head | None = None


@dataclass(frozen=True)
class Blob:
    """One form in which a payload can be pulled: the frame itself, where the digests are the same,
    else a packet; where that codes differences, `base` is the digest of the frame it adds to."""

    digest: str  # BLAKE3, hex
    size: int
    base: str = ""


@dataclass(frozen=True)
class Payload:
    """A record that an assignment gives its collaborator; every one of its blobs decodes to the
    same frame, which `digest` names. The first that the collaborator can decode is the one."""

    name: str  # "model", "frozen"
    digest: str  # BLAKE3 of the frame, hex
    size: int  # of the frame
    blobs: tuple[Blob, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """One ask, as one collaborator gets it."""

    ask: str
    task: str
    round: int
    settings: Mapping[str, Json]
    payloads: tuple[Payload, ...]
    updates: bool  # whether the reply holds an update of the model, or numbers only
    limit: int  # most bytes of the reply's packet


@dataclass(frozen=True)
class Next:
    stamp: Stamp
    wait_s: float  # how long the aggregator may hold the call
    holding: tuple[str, ...] = ()  # asks the collaborator is working on


@dataclass(frozen=True)
class Orders:
    """Answer to `Next`: the state of the run, the lease, work to do, work to drop."""

    stamp: Stamp
    state: RunState
    reason: str
    lease_s: float
    assignment: Assignment | None = None
    cancel: tuple[str, ...] = ()
    head: Head | None = None


@dataclass(frozen=True)
class Pull:
    stamp: Stamp
    digest: str
    offset: int = 0


@dataclass(frozen=True)
class Push:
    """Opens an upload; the blocks follow from the offset that the aggregator answers.

    `upload` names what is being encoded, so that it can be sent before its end is known; `digest`
    is empty until then. Another upload of the same ask replaces what came before it.
    """

    stamp: Stamp
    ask: str
    upload: str
    digest: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a collaborator has no reply."""

    code: str
    message: str
    traceback: str = ""


@dataclass(frozen=True)
class Report:
    """Closes an ask at one collaborator: the digest of what it pushed, or why there is none."""

    stamp: Stamp
    ask: str
    digest: str = ""
    size: int = 0
    failure: Failure | None = None


class Ruling(StrEnum):
    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    LATE = "late"
    REFUSED = "refused"


@dataclass(frozen=True)
class Renew:
    stamp: Stamp
    request: Request


@dataclass(frozen=True)
class Renewed:
    stamp: Stamp
    chain: bytes  # PEM, the leaf first
    anchors: bytes  # PEM: the roots to trust from now on


@dataclass(frozen=True)
class Verdict:
    stamp: Stamp
    ruling: Ruling
    code: str = ""
    message: str = ""
    receipt: bytes = b""  # of a reply that counts: its entry in the ledger
