"""What the authority knows: who is enrolled, what they were issued, who is revoked.

`record.jsonl` has one line for each thing that happened: created, issued, revoked, rolled-over,
finished. It is the truth; the roster and the CRL are made from it.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from openfed.errors import CertificateError
from openfed.parse import strict_json
from openfed.pki.authority import Enrolment
from openfed.pki.peer import AGGREGATOR, Peer

RENEWAL, TRIAL = "renewal", "trial"


@dataclass(frozen=True)
class Issued:
    """One certificate. Times are seconds since the epoch."""

    serial: int
    not_before: float
    not_after: float
    at: float
    how: str  # "hand", "token", "renewal" or "trial"
    root: str = ""  # SHA-256 of the root that issued it, in hexadecimal digits


@dataclass(frozen=True)
class Node:
    """One enrolment. A name that was revoked and is enrolled anew is another node."""

    role: str
    name: str
    hosts: tuple[str, ...]
    identity: bytes  # 32 raw bytes: the public half of its Ed25519 key
    enrolled_at: float
    until: float | None  # nothing is issued, and nothing lasts, beyond this
    issued: tuple[Issued, ...]  # oldest first
    revoked_at: float | None = None
    reason: str = ""

    @property
    def of_trial(self) -> bool:
        """Its keys were made by `fx run`: a real enrolment takes its place."""
        return all(each.how == TRIAL for each in self.issued)

    def state(self, now: float) -> str:
        """`revoked`, `enrolled` (nothing issued yet), `valid` or `expired`."""
        if self.revoked_at is not None:
            return "revoked"
        if not self.issued:
            return "enrolled"
        return "valid" if now < max(each.not_after for each in self.issued) else "expired"


@dataclass(frozen=True)
class Record:
    """All lines, read."""

    trial: bool = True  # the authority was made by `fx run`, not by its operator
    number: int = 0  # of changes to the roster so far
    nodes: Mapping[str, Node] = field(default_factory=dict)  # by name: its newest enrolment
    revoked: tuple[tuple[Issued, float], ...] = ()  # every certificate of revoked nodes, since when

    @property
    def revoked_serials(self) -> frozenset[int]:
        return frozenset(each.serial for each, _ in self.revoked)


def read_record(data: bytes, where: str) -> Record:
    """Raises C36: a line that is none. A last line that a crash cut off never happened."""
    record, nodes = Record(), dict[str, Node]()  # one dict: a thousand lines, not as many copies
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            record = _after(record, nodes, strict_json(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = f"{where}:{number}: expected a line that fx writes, found {line[:60]!r}"
            raise CertificateError("C36", message) from error
    return replace(record, nodes=nodes)


def _after(record: Record, nodes: dict[str, Node], told: Mapping[str, Any]) -> Record:
    """The record but for its nodes, which are changed in place."""
    event, at = told.get("event", "issued"), float(told["at"])
    number = record.number + (told.get("how") != RENEWAL)
    if event == "created":
        return replace(record, number=number, trial=told["how"] == TRIAL)
    if event == "issued":
        node = _with_leaf(nodes.get(told["name"]), told, at)
        nodes[node.name] = node
        return replace(record, number=number)
    if event == "revoked":
        node = replace(nodes[told["name"]], revoked_at=at, reason=str(told["reason"]))
        gone = tuple((each, at) for each in node.issued)
        nodes[node.name] = node
        return replace(record, number=number, revoked=record.revoked + gone)
    if event in ("rolled-over", "finished"):
        return replace(record, number=number)
    raise ValueError(event)


def _with_leaf(node: Node | None, told: Mapping[str, Any], at: float) -> Node:
    leaf = Issued(
        int(told["serial"], 16),
        float(told.get("not_before", at)),
        float(told["not_after"]),
        at,
        told.get("how", TRIAL),
        told.get("root", ""),
    )
    hosts, until = tuple(map(str, told["hosts"])), told.get("until")
    if node is None or node.revoked_at is not None:
        identity = bytes.fromhex(told["identity"])
        return Node(told["role"], told["name"], hosts, identity, at, until, (leaf,))
    return replace(node, hosts=hosts, until=until, issued=(*node.issued, leaf))


# -- lines --------------------------------------------------------------------------------------


def created_line(federation: str, root: str, how: str, now: float) -> bytes:
    return _line("created", now, federation=federation, root=root, how=how)


def issued_line(enrolment: Enrolment, identity: bytes, leaf: Issued) -> bytes:
    return _line(
        "issued",
        leaf.at,
        role=enrolment.role,
        name=enrolment.name,
        hosts=list(enrolment.hosts),
        until=enrolment.until,
        identity=identity.hex(),
        serial=f"{leaf.serial:032x}",
        not_before=leaf.not_before,
        not_after=leaf.not_after,
        how=leaf.how,
        root=leaf.root,
    )


def revoked_line(name: str, reason: str, now: float) -> bytes:
    return _line("revoked", now, name=name, reason=reason)


def root_line(event: str, root: str, now: float) -> bytes:
    """`event` is rolled-over or finished."""
    return _line(event, now, root=root)


def _line(event: str, now: float, **told: object) -> bytes:
    line = {"event": event, "at": now, **told}
    return json.dumps(line, sort_keys=True, allow_nan=False).encode()


# -- rules --------------------------------------------------------------------------------------


def check_enrolable(record: Record, asked: Enrolment, identity: bytes, now: float) -> None:
    """Whether a certificate may be issued for what is asked, to the holder of `identity`.

    Raises C30 (the name is another's), C31 (this identity was revoked), C33 (ends in the past).
    """
    if asked.until is not None and asked.until <= now:
        raise CertificateError("C33", f"{asked.name!r}: the end of its enrolment is in the past")
    if asked.name == AGGREGATOR and asked.role != AGGREGATOR:
        raise CertificateError("C30", f"{asked.name!r} is the aggregator's own name")
    node = record.nodes.get(asked.name)
    if node is None:
        return
    if node.revoked_at is not None:
        if node.identity == identity:
            raise CertificateError(
                "C31", f"{asked.name!r} was revoked: {node.reason or 'no reason was given'}"
            )
        return
    if node.role != asked.role:
        raise CertificateError("C30", f"{asked.name!r} is enrolled as a {node.role}")
    if node.identity != identity and not node.of_trial:
        raise CertificateError(
            "C30",
            f"{asked.name!r} is enrolled with another identity key, {node.identity.hex()[:16]}...; "
            f"the request has {identity.hex()[:16]}...",
        )


def gives_way(record: Record, asked: Enrolment, identity: bytes) -> bool:
    """Whether the name is only enrolled by a trial on the authority's machine, with other keys."""
    node = record.nodes.get(asked.name)
    if node is None or node.revoked_at is not None:
        return False
    return node.of_trial and node.identity != identity


def renewable(record: Record, peer: Peer, identity: bytes, now: float) -> Node:
    """The node that an authenticated peer may renew. Raises C30-C33."""
    node = record.nodes.get(peer.name)
    if node is None or node.role != peer.role:
        raise CertificateError("C32", f"{peer.role} {peer.name!r} is not enrolled here")
    if peer.serial in record.revoked_serials or node.revoked_at is not None:
        raise CertificateError(
            "C31", f"{peer.name!r} was revoked: {node.reason or 'no reason given'}"
        )
    if peer.serial not in {each.serial for each in node.issued}:
        raise CertificateError(
            "C32", f"the certificate that {peer.name!r} shows was never issued to it"
        )
    if node.identity != identity:
        raise CertificateError(
            "C30", f"{peer.name!r} is enrolled with another identity key than the request's"
        )
    if node.until is not None and node.until <= now:
        raise CertificateError("C33", f"the enrolment of {peer.name!r} has ended")
    return node


def holding_on(record: Record, root: str, now: float) -> Iterator[str]:
    """Names of the nodes whose newest certificate is valid and of another root than `root`."""
    for node in record.nodes.values():
        newest = node.issued[-1] if node.issued and node.revoked_at is None else None
        if newest and newest.root != root and newest.not_after > now:
            yield node.name
