"""Certificates by hand: what the commands of `fx workspace|aggregator|collaborator|pki` do on disk.

Every function is safe to repeat, and never replaces a key.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.errors import CertificateError
from openfed.files import write_whole
from openfed.parse import strict_json
from openfed.pki.authority import Enrolment
from openfed.pki.disk import make_folder, read
from openfed.pki.files import create_keys, install, install_roster, make_request
from openfed.pki.leaf import inspect
from openfed.pki.office import ROSTER, Office
from openfed.pki.package import (
    Asked,
    Granted,
    certificate_file,
    pack_granted,
    pack_request,
    read_granted,
    request_file,
)
from openfed.pki.peer import AGGREGATOR, COLLABORATOR, Peer, host_name
from openfed.pki.record import RENEWAL, Node
from openfed.pki.roster import read_roster
from openfed.plan.load import load_plan
from openfed.plan.lock import read_lock
from openfed.workspace import Workspace

DAY_S = 86400.0


@dataclass(frozen=True)
class Made:
    asked: Asked
    paths: tuple[Path, ...]


def federation_of(workspace: Workspace) -> str:
    """As plan.yaml says."""
    return load_plan(workspace.plan).federation


def hosts_of(workspace: Workspace) -> tuple[str, ...]:
    """Where the plan says that the aggregator is reached; plan.lock's (`-a`), once it is there."""
    if workspace.lock.exists():
        return tuple(read_lock(workspace.lock).advertise)
    return tuple(load_plan(workspace.plan).aggregator.advertise)


# -- the aggregator -----------------------------------------------------------------------------


def request_aggregator(workspace: Workspace, hosts: Iterable[str]) -> Made:
    """The aggregator's keys, and a note of the hosts (by default the plan's) it will be named by.

    Raises C04 (no host name), C11, C13.
    """
    federation = federation_of(workspace)
    named = tuple(str(host_name(host)) for host in hosts)
    paths = create_keys(workspace.cert, AGGREGATOR)
    note = _hosts_note(workspace)
    if named and list(named) != _noted(note):
        text = json.dumps({"hosts": list(named)}).encode() + b"\n"
        paths.append(write_whole(note, text))
    request = make_request(workspace.cert, AGGREGATOR)
    return Made(Asked(federation, AGGREGATOR, AGGREGATOR, request), tuple(paths))


def aggregator_hosts(workspace: Workspace, hosts: Iterable[str]) -> tuple[str, ...]:
    """Those given, else those of its request, else the plan's."""
    return tuple(hosts) or tuple(_noted(_hosts_note(workspace))) or hosts_of(workspace)


def certify_aggregator(
    office: Office, workspace: Workspace, made: Made, hosts: Iterable[str], now: float
) -> list[Path]:
    """Enrol the aggregator, whose keys are here, under these hosts; the files written."""
    _check_federation(made.asked.federation, office)
    enrolment = Enrolment(office.federation, AGGREGATOR, AGGREGATOR, tuple(hosts))
    chain = office.certify(made.asked.request, enrolment, now)
    paths = install(workspace.cert, AGGREGATOR, chain, office.anchors(), now=now)
    return [*made.paths, *paths, office.cert_dir / ROSTER]


def _hosts_note(workspace: Workspace) -> Path:
    return workspace.cert / AGGREGATOR / "hosts.json"


def _noted(path: Path) -> list[str]:
    try:
        return [str(host_name(host)) for host in strict_json(read(path))["hosts"]]
    except (CertificateError, ValueError, KeyError, TypeError, AttributeError):
        return []  # none, or not ours: the plan's count


# -- a collaborator -----------------------------------------------------------------------------


def request_collaborator(workspace: Workspace, name: str) -> Made:
    """Collaborator `name`'s keys, born here, and the package that asks for its certificate."""
    federation = federation_of(workspace)
    paths = create_keys(workspace.cert, name)
    asked = Asked(federation, COLLABORATOR, name, make_request(workspace.cert, name))
    package = write_whole(workspace.root / request_file(name), pack_request(asked))
    return Made(asked, (*paths, package))


def check_asked(office: Office, workspace: Workspace, asked: Asked) -> list[str]:
    """What an operator should know before confirming it.

    Raises C40: a request of another federation, or of another role than a collaborator's.
    """
    _check_federation(asked.federation, office)
    if asked.role != COLLABORATOR:
        message = f"expected a request of a {COLLABORATOR}, found one of a(n) {asked.role}"
        raise CertificateError("C40", message)
    plan = load_plan(workspace.plan)
    if plan.admits(asked.name):
        return []
    return [f"{asked.name} is not among the plan's collaborators"]


def certify_collaborator(
    office: Office, workspace: Workspace, asked: Asked, now: float, until: float | None = None
) -> Path:
    """Enrol who asked, under the name that the operator has confirmed; the package to send back."""
    check_asked(office, workspace, asked)
    enrolment = Enrolment(office.federation, COLLABORATOR, asked.name, until=until)
    chain = office.certify(asked.request, enrolment, now)
    granted = Granted(chain, office.anchors(), read(office.cert_dir / ROSTER, 1 << 24))
    return write_whole(workspace.root / certificate_file(asked.name), pack_granted(granted))


def import_certificate(workspace: Workspace, package: Path, now: float) -> tuple[Peer, list[Path]]:
    """Install what the authority sent back: it must be for a collaborator whose keys are here.

    Raises UsageError (not such an archive), and what `install` and `read_roster` do.
    """
    granted, federation = read_granted(package), federation_of(workspace)
    peer = inspect(granted.chain)
    if not (workspace.cert / peer.name / "node.key").exists():
        raise CertificateError(
            "C12",
            f"{package} is for {peer.name!r}, and {workspace.cert / peer.name}/node.key is "
            "missing: import it where the request was made",
        )
    read_roster(granted.roster, granted.anchors)
    make_folder(workspace.cert, 0o755)
    paths = install(
        workspace.cert,
        peer.name,
        granted.chain,
        granted.anchors,
        federation=federation,
        role=COLLABORATOR,
        now=now,
    )
    return peer, [*paths, *install_roster(workspace.cert, granted.roster)]


# -- the authority ------------------------------------------------------------------------------


def renew_here(office: Office, workspace: Workspace, name: str, now: float) -> list[Path]:
    """A new certificate for a node whose keys are in this workspace; the aggregator's with the
    hosts that the plan has now. Raises C12 (no keys here), C32 (not enrolled).
    """
    node = next((each for each in office.nodes() if each.name == name), None)
    if node is None:
        raise CertificateError("C32", f"{name!r} is not enrolled here; fx pki list shows who is")
    hosts = hosts_of(workspace) if node.role == AGGREGATOR else node.hosts
    enrolment = Enrolment(office.federation, node.role, name, hosts, node.until)
    chain = office.certify(make_request(workspace.cert, name), enrolment, now, RENEWAL)
    return install(workspace.cert, name, chain, office.anchors(), now=now)


def node_row(node: Node, now: float) -> dict[str, Any]:
    """One line of `fx pki list --json`. Times in seconds since the epoch."""
    newest = node.issued[-1] if node.issued else None
    return {
        "name": node.name,
        "role": node.role,
        "state": node.state(now),
        "serial": f"{newest.serial:032x}" if newest else None,
        "not_after": newest.not_after if newest else None,
        "days_left": max(0.0, (newest.not_after - now) / DAY_S) if newest else None,
        "hosts": list(node.hosts),
        "enrolled_at": node.enrolled_at,
        "until": node.until,
        "revoked_at": node.revoked_at,
        "reason": node.reason,
        "how": newest.how if newest else None,
    }


def _check_federation(found: str, office: Office) -> None:
    if found != office.federation:
        raise CertificateError(
            "C40", f"expected a request of federation {office.federation!r}, found {found!r}"
        )
