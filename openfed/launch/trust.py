"""What a running node trusts: the roster as it is now, approvals, certificates before they end."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from openfed.errors import CertificateError, OpenFedError, PolicyError
from openfed.launch.consent import approval_for
from openfed.node.aggregator import Consent
from openfed.pki.desk import renew_at_desk
from openfed.pki.disk import authority_here
from openfed.pki.files import install, load_identity, load_roster, make_request, may_issue
from openfed.pki.leaf import Identity, half_life
from openfed.pki.office import open_office
from openfed.pki.peer import Peer
from openfed.pki.request import Request
from openfed.pki.roster import Roster
from openfed.plan.approval import verify_approval
from openfed.plan.lock import Lock
from openfed.workspace import Workspace

Said = Callable[[str], None]
Renewals = Callable[[Request], Awaitable[tuple[bytes, bytes]]]
"""A request -> a chain and the roots to trust, both PEM."""

LOOK_S = 0.5
"""How often the roster's file is looked at."""

SHORTEST_S, LONGEST_S = 1.0, 600.0
"""Between two attempts to renew; within these, a tenth of what is left."""


class LiveRoster:
    """`cert/roster.json` as it is now. None: there is none, as in a folder without an authority.

    One that cannot be read changes nothing: who was denied stays denied.
    """

    def __init__(self, cert: Path, said: Said) -> None:
        self._cert, self._said = cert, said
        self._looked, self._seen = float("-inf"), (0, 0, 0)
        self._roster: Roster | None = None

    def now(self) -> Roster | None:
        if time.monotonic() - self._looked >= LOOK_S:
            self._looked = time.monotonic()
            self._look()
        return self._roster

    def denied(self, peer: Peer) -> bool:
        roster = self.now()
        return roster is not None and roster.denied(peer)

    def _look(self) -> None:
        try:
            found = (self._cert / "roster.json").stat()
        except OSError:
            return
        seen = found.st_mtime_ns, found.st_size, found.st_ino
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._roster = load_roster(self._cert)
        except OpenFedError as error:
            self._said(f"the roster cannot be read, the one before it holds: {error}")


def consent(workspace: Workspace, lock: Lock, roster: LiveRoster) -> Consent | None:
    """What the aggregator demands of a site: its approval of this plan, by the identity key that
    the authority has on its roster. In a trial on one machine, nothing."""
    if may_issue(workspace.cert):
        return None

    def check(peer: Peer, approval: bytes) -> None:
        if not approval:
            message = f"site {peer.name} has not approved plan {lock.digest[:16]}"
            raise PolicyError("R23", f"{message}: there, fx collaborator approve -n {peer.name}")
        known = roster.now()
        public = known.identity(peer.name) if known else None
        if public is None:
            message = f"expected the identity key of {peer.name} in cert/roster.json, found none"
            raise PolicyError("R27", f"{message}: bring the roster from the authority")
        verify_approval(approval, public, lock.digest, peer.name)

    return check


def approval(workspace: Workspace, lock: Lock, name: str) -> bytes:
    """What site `name` shows the aggregator; nothing in a trial. Raises as `approval_for`."""
    return b"" if may_issue(workspace.cert) else approval_for(workspace, lock, name).data()


async def renewed(
    workspace: Workspace, desk: Path, request: Request, peer: Peer
) -> tuple[bytes, bytes]:
    """A new chain for a peer and the roots to trust: from the authority's desk or, where nobody is
    at it and the authority's key lies open in this workspace, from its office.

    Raises: CertificateError: C57 the authority is offline; what `Office.renew` does.
    """
    try:
        answer = await renew_at_desk(desk, request, peer)
    except CertificateError as error:
        if error.code != "C57" or not authority_here(workspace.cert):
            raise
    else:
        return answer.chain, answer.anchors
    return await asyncio.to_thread(_in_office, workspace.cert, request, peer)


def _in_office(cert: Path, request: Request, peer: Peer) -> tuple[bytes, bytes]:
    office = open_office(cert)
    if office.encrypted:
        message = "its key is encrypted: open it with fx pki serve"
        raise CertificateError("C57", f"the authority is offline: {message}")
    return office.renew(request, peer, time.time()), office.anchors()


class Shown:
    """The identity that a server shows from now on; asked by any thread."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def now(self) -> Identity:
        return self._identity

    def show(self, identity: Identity) -> None:
        self._identity = identity


@asynccontextmanager
async def beside(work: Callable[[], Coroutine[Any, Any, None]]) -> AsyncGenerator[None, None]:
    """Do it as long as the block lasts; its fault is raised at the end of the block."""
    task = asyncio.create_task(work())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def keep_renewed(
    cert: Path, identity: Identity, renew: Renewals, show: Callable[[Identity], None], said: Said
) -> None:
    """Renew a node's certificate at half its life, over and over; `show` is given each new one.

    A renewal that fails is tried again while the certificate lives, and said once.
    """
    peer, quiet = identity.peer, False
    while True:
        due = half_life(identity.chain_pem)
        await asyncio.sleep(max(0.0, due - time.time()))
        try:
            chain, anchors = await renew(make_request(cert, peer.name))
            identity = await asyncio.to_thread(_installed, cert, peer, chain, anchors)
        except OpenFedError as error:
            if not quiet:
                said(f"the certificate could not be renewed yet: {error}")
            quiet = True
            left = identity.peer.not_after - time.time()
            await asyncio.sleep(min(max(left / 10, SHORTEST_S), LONGEST_S))
            continue
        quiet = False
        show(identity)
        ends = time.strftime("%Y-%m-%d %H:%M", time.gmtime(identity.peer.not_after))
        said(f"certificate renewed, valid until {ends} UTC")


def _installed(cert: Path, peer: Peer, chain: bytes, anchors: bytes) -> Identity:
    install(cert, peer.name, chain, anchors, federation=peer.federation, role=peer.role)
    return load_identity(cert, peer.name, federation=peer.federation, role=peer.role)
