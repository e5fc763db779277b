"""The authority as a process: it renews at its desk, and enrols while tokens are outstanding.

    python -m openfed.launch.authority --workspace W [--listen HOST:PORT] [--desk PATH]
                                       [--passphrase-file F]

It has no part in a run: it may be away for days, and nodes renew when it is back. It ends at
SIGTERM, or when its standard input does.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openfed.errors import CertificateError, OpenFedError, UsageError
from openfed.files import lock_file
from openfed.launch.enrol import hosts_of
from openfed.launch.lifeline import run_until_stopped, watch_lifeline
from openfed.parse import join_address, split_address
from openfed.pki.desk import serve_desk
from openfed.pki.keys import load_key
from openfed.pki.listener import keep_enrolment
from openfed.pki.office import Office, open_office
from openfed.pki.peer import AUTHORITY, node_name
from openfed.pki.token import mint, token_text
from openfed.pki.token_book import add_token, withdraw_token
from openfed.plan.load import load_plan
from openfed.workspace import Workspace, open_workspace

Said = Callable[[str], None]


def serve_authority(
    workspace: Workspace,
    said: Said,
    *,
    listen: str | None = None,
    desk: Path | None = None,
    passphrase: bytes | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. By default at the port after the aggregator's, and at
    `runs/authority.sock`.

    Raises: CertificateError: C12, C15, C16, C66 (it is served already). UsageError U17.
    """
    opener = partial(open_office, workspace.cert, passphrase)
    office = _office(workspace, opener)
    load_key(office.authority.key, passphrase)  # now, and not when the first node asks
    where = listen or enrolment_address(workspace, "listen")
    with _only_one(workspace.cert):
        run_until_stopped(partial(_serve, workspace, opener, where, desk, said))


async def _serve(
    workspace: Workspace,
    opener: Callable[[], Office],
    listen: str,
    desk: Path | None,
    said: Said,
    stop: asyncio.Event,
) -> None:
    path = desk or _default_desk(workspace)
    async with serve_desk(opener, path, said=said):
        said(f"authority of {opener().federation}: renewing at {path}")
        enrolling = asyncio.create_task(keep_enrolment(workspace.cert, opener, listen, said))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({enrolling, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if enrolling.done():
                enrolling.result()
        finally:
            stopping.cancel()
            enrolling.cancel()
            with suppress(asyncio.CancelledError, OpenFedError):
                await enrolling
    said("stopped")


def _default_desk(workspace: Workspace) -> Path:
    workspace.runs.mkdir(mode=0o700, exist_ok=True)
    workspace.runs.chmod(0o700)  # an aggregator may have made it with what the umask gave
    return workspace.desk


def _office(workspace: Workspace, opener: Callable[[], Office]) -> Office:
    office, federation = opener(), load_plan(workspace.plan).federation
    if office.federation != federation:
        raise CertificateError(
            "C16", f"expected the authority of {federation!r}, found that of {office.federation!r}"
        )
    return office


def enrolment_address(workspace: Workspace, option: str) -> str:
    """Where tokens are taken unless an option says: the port after the aggregator's, at the host
    that it listens at ("listen") or that sites dial ("address"). Raises: UsageError U17."""
    listen = load_plan(workspace.plan).aggregator.listen
    host, port = split_address(listen)
    if not 0 < port < 65535:
        raise UsageError("U17", f"no port follows that of {listen}: give one with --{option}")
    return join_address(host if option == "listen" else hosts_of(workspace)[0], port + 1)


@dataclass(frozen=True)
class Minted:
    """A token for a site, and all that it has to know."""

    text: str
    pin: str
    name: str
    ends: float
    address: str
    replaced: bool  # an unused token of the same name was withdrawn
    served: bool  # whether the authority runs now

    @property
    def command(self) -> str:
        return f"fx collaborator enroll --token {self.text} --ca {self.pin}"

    @property
    def json(self) -> dict[str, Any]:
        told = {"token": self.text, "pin": self.pin, "name": self.name, "expires": self.ends}
        return told | {"address": self.address, "served": self.served, "command": self.command}


def mint_token(
    workspace: Workspace, name: str, role: str, life_s: float, address: str | None, now: float
) -> Minted:
    """Let `name` enrol once. Raises: CertificateError C04, C12, C16; UsageError U17."""
    office = _office(workspace, partial(open_office, workspace.cert))
    name, where = node_name(name), address or enrolment_address(workspace, "address")
    token = mint(office.federation, role, name, now + life_s, where)
    replaced = add_token(office, token, now)
    served = is_served(workspace.cert)
    pin = office.fingerprint()
    return Minted(token_text(token), pin, name, token.ends, token.address, replaced, served)


def take_back(workspace: Workspace, name: str, now: float) -> None:
    """Withdraw the unused token of `name`. Raises: CertificateError C12, C63."""
    withdraw_token(open_office(workspace.cert), name, now)


@contextmanager
def _only_one(cert_dir: Path) -> Iterator[None]:
    try:
        held = lock_file(cert_dir / AUTHORITY / "serving", wait=False)
    except BlockingIOError:
        raise CertificateError("C66", f"the authority in {cert_dir} is served already") from None
    try:
        yield
    finally:
        os.close(held)


def is_served(cert_dir: Path) -> bool:
    """Whether a process serves this authority now."""
    try:
        with _only_one(cert_dir):
            return False
    except CertificateError:
        return True


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def main() -> None:
    """The process: every fault is a line on standard error and an exit code."""
    parser = argparse.ArgumentParser(prog="openfed.launch.authority")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--listen", type=lambda text: join_address(*split_address(text)))
    parser.add_argument("--desk", type=Path)
    parser.add_argument("--passphrase-file", type=Path)
    given = parser.parse_args()
    watch_lifeline()
    try:
        secret = given.passphrase_file and given.passphrase_file.read_bytes()
        serve_authority(
            open_workspace(given.workspace),
            _say,
            listen=given.listen,
            desk=given.desk,
            passphrase=secret.partition(b"\n")[0].rstrip(b"\r") if secret else None,
        )
    except OpenFedError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        _say(f"S12  {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
