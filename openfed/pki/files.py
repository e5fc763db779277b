"""A node's keys and certificates on disk, and those of a trial, where everybody is on one machine.

    cert/authority.pem                 what is trusted, public
    cert/roster.json                   who takes part, signed by the authority, public
    cert/authority/                    the authority, where it is: see office.py
    cert/<name>/                       0700: node.key 0600, identity.key 0600, node.pem, chain.pem

A key is written once, whole or not at all, and never overwritten.
"""

import os
import time
from pathlib import Path

from openfed.errors import CertificateError
from openfed.failpoints import failpoint
from openfed.files import lock_file, write_whole
from openfed.pki.authority import Enrolment
from openfed.pki.disk import (
    authority_here,
    create_secret,
    load_authority,
    load_profiles,
    make_folder,
    read,
    read_secret,
)
from openfed.pki.keys import create_identity_key, create_key
from openfed.pki.leaf import (
    Identity,
    check_leaf,
    half_life,
    leaf_hosts,
    unknown_roots,
)
from openfed.pki.office import ROSTER, Office, check_own, create_office, open_office
from openfed.pki.peer import AGGREGATOR, AUTHORITY, COLLABORATOR, host_name, node_name
from openfed.pki.record import TRIAL
from openfed.pki.request import Request, create_request
from openfed.pki.roster import MOST_BYTES, Roster, read_roster

__all__ = [
    "create_keys",
    "ensure_federation",
    "install",
    "install_roster",
    "load_authority",
    "load_identity",
    "load_identity_key",
    "load_profiles",
    "load_roster",
    "make_request",
    "may_issue",
]

_REISSUED = {"C05", "C06", "C07", "C08", "C09", "C10", "C12", "C16", "C17"}
"""What a new leaf heals. Loose modes and unreadable keys are for a person to look at."""


def ensure_federation(
    cert_dir: Path,
    federation: str,
    aggregator_names: tuple[str, ...],
    collaborators: tuple[str, ...],
    now: float,
) -> list[Path]:
    """Everything that `fx run` needs below `cert_dir`; returns the files it wrote.

    Creates what is missing and keeps what is valid. A leaf is issued anew, for the same key, when
    more than half its life is over, when the aggregator's hosts changed, or when it does not belong
    to this authority. Raises C04, C11, C13-C16, C30 (enrolled elsewhere), C31, C34.
    """
    nodes = [Enrolment(federation, AGGREGATOR, AGGREGATOR, aggregator_names)]
    nodes += [Enrolment(federation, COLLABORATOR, name) for name in collaborators]
    written = create_office(cert_dir, federation, now, how=TRIAL)
    office = open_office(cert_dir)
    with office.locked():  # other commands may write certificates there
        for node in nodes:
            written += _ensure_node(office, node, now)
    return list(dict.fromkeys(written))  # the roster changes with every node


def may_issue(cert_dir: Path) -> bool:
    """Whether starting a node may make what it lacks: the authority here is a trial's, or none is.

    Not where an operator made it (`fx workspace certify`), nor where it lies elsewhere.
    """
    try:
        if not (cert_dir / AUTHORITY).exists():
            check_own(cert_dir, TRIAL)
            return True
        if not authority_here(cert_dir):
            return False
        office = open_office(cert_dir)
        return office.record().trial and not office.encrypted
    except CertificateError as error:
        if error.code in ("C12", "C34"):
            return False
        raise


def load_identity(
    cert_dir: Path,
    name: str,
    *,
    federation: str | None = None,
    role: str | None = None,
    now: float | None = None,
) -> Identity:
    """What node `name` shows and trusts, after every check that needs no network."""
    folder = cert_dir / node_name(name)
    key, chain = read_secret(folder / "node.key"), read(folder / "chain.pem")
    authority = read(cert_dir / "authority.pem")
    peer = check_leaf(
        chain,
        key,
        authority,
        federation=federation,
        role=role,
        name=name,
        now=time.time() if now is None else now,
    )
    return Identity(key, chain, authority, peer)


def load_identity_key(cert_dir: Path, name: str) -> bytes:
    """The node's Ed25519 key (PEM), for `keys.sign`."""
    return read_secret(cert_dir / node_name(name) / "identity.key")


def load_roster(cert_dir: Path) -> Roster:
    """The roster that lies here, by the authority that is trusted here. Raises C12, C37."""
    return read_roster(read(cert_dir / ROSTER, MOST_BYTES + 1), read(cert_dir / "authority.pem"))


def create_keys(cert_dir: Path, name: str) -> list[Path]:
    """The node's two keys, where they are missing; the files written. Raises C04, C11, C13."""
    folder, written = cert_dir / node_name(name), list[Path]()
    make_folder(cert_dir, 0o755)
    make_folder(folder, 0o700)
    for key, create in (("node.key", create_key), ("identity.key", create_identity_key)):
        if not (folder / key).exists():
            written.append(create_secret(folder / key, create()))
    return written


def make_request(cert_dir: Path, name: str) -> Request:
    """What node `name` asks of the authority, with the keys that are here. Raises C11, C12."""
    key = read_secret(cert_dir / node_name(name) / "node.key")
    return create_request(name, key, load_identity_key(cert_dir, name))


def install(
    cert_dir: Path,
    name: str,
    chain: bytes,
    anchors: bytes,
    *,
    federation: str | None = None,
    role: str | None = None,
    now: float | None = None,
) -> list[Path]:
    """Put a chain that was issued to node `name`, and what it is to trust (PEM), in their places.

    Where an authority is trusted already, each new root must be certified by it, in `chain`.
    Raises what `check_leaf` does, C11, C12 (no key here) and C38; then nothing was written.
    """
    folder = cert_dir / node_name(name)
    key, public = read_secret(folder / "node.key"), cert_dir / "authority.pem"
    held = lock_file(cert_dir, wait=True)
    try:
        check_leaf(
            chain,
            key,
            anchors,
            federation=federation,
            role=role,
            name=name,
            now=time.time() if now is None else now,
        )
        if public.exists():
            _check_succession(read(public), anchors, chain)
        return _install(folder, chain, public, anchors)
    finally:
        os.close(held)


def install_roster(cert_dir: Path, roster: bytes) -> list[Path]:
    """Keep a roster, unless it is older than the one here. Raises C12, C37."""
    offered = read_roster(roster, read(cert_dir / "authority.pem"))
    held = lock_file(cert_dir, wait=True)
    try:
        if (cert_dir / ROSTER).exists() and load_roster(cert_dir).number > offered.number:
            return []
        return [write_whole(cert_dir / ROSTER, roster)]
    finally:
        os.close(held)


def _check_succession(trusted: bytes, anchors: bytes, chain: bytes) -> None:
    if strangers := unknown_roots(trusted, anchors, chain):
        raise CertificateError(
            "C38",
            f"an authority is offered that the one in cert/authority.pem does not vouch for: "
            f"{', '.join(strangers)}",
        )


def _install(folder: Path, chain: bytes, public: Path, anchors: bytes) -> list[Path]:
    """The chain first: it is good under the anchors before and under those after."""
    written = _write_chain(folder, chain)
    failpoint("certificate.chain")
    if not public.exists() or read(public) != anchors:
        written.append(write_whole(public, anchors))
    return written


def _write_chain(folder: Path, chain: bytes) -> list[Path]:
    leaf = chain[: chain.index(_END) + len(_END)] + b"\n"
    node = write_whole(folder / "node.pem", leaf)
    failpoint("certificate.leaf")
    return [node, write_whole(folder / "chain.pem", chain)]


_END = b"-----END CERTIFICATE-----"


def _ensure_node(office: Office, node: Enrolment, now: float) -> list[Path]:
    _check_here(office, node)
    written = create_keys(office.cert_dir, node.name)
    folder = office.cert_dir / node.name
    if (folder / "node.pem").exists() and not _needs_leaf(office.cert_dir, node, now):
        return written
    request = make_request(office.cert_dir, node.name)
    chain = office.certify(request, node, now, TRIAL)
    return [*written, *_write_chain(folder, chain), office.cert_dir / ROSTER]


def _check_here(office: Office, node: Enrolment) -> None:
    """Before keys are made: raises C30, the name belongs to a node on another machine."""
    known = office.record().nodes.get(node.name)
    here = (office.cert_dir / node_name(node.name) / "identity.key").exists()
    if known and known.revoked_at is None and not known.of_trial and not here:
        raise CertificateError(
            "C30", f"{node.name!r} is enrolled, and its keys are not on this machine"
        )


def _needs_leaf(cert_dir: Path, node: Enrolment, now: float) -> bool:
    try:
        identity = load_identity(
            cert_dir, node.name, federation=node.federation, role=node.role, now=now
        )
    except CertificateError as error:
        if error.code in _REISSUED:
            return True
        raise
    hosts = frozenset(str(host_name(host)) for host in node.hosts)
    return now > half_life(identity.chain_pem) or leaf_hosts(identity.chain_pem) != hosts
