"""`fx collaborator ...`"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openfed.cli.certify import PASSPHRASE, SILENT

if TYPE_CHECKING:
    from datetime import datetime
    from typing import TextIO

    from openfed.plan.lock import Lock
    from openfed.workspace import Workspace


@click.group()
def command() -> None:
    """Certify, approve for and start one collaborator of this workspace."""


@command.command()
@click.option("-n", "--name", required=True, help="The collaborator's name, as the plan has it.")
@click.option("-d", "--data", required=True, help="Where its data is: handed to the data loader.")
@click.option("--silent", is_flag=True, help="Ask nothing. (It never does.)")
def create(name: str, data: str, silent: bool) -> None:
    """Write site.yaml: where this site's data is, its limits, what is done to its updates."""
    from openfed.cli import show
    from openfed.launch.sites import create_site
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    written = create_site(workspace, name, data)
    click.echo(f"collaborator {name}, data {data}")
    show.written(workspace.root, written)
    if not written:
        click.echo("  site.yaml was there already, and was left as it is")
    click.echo(f"Next:  fx collaborator generate-cert-request -n {name}")


@command.command("generate-cert-request")
@click.option("-n", "--name", required=True, help="The collaborator's name, as the plan has it.")
@SILENT
def generate_cert_request(name: str, silent: bool) -> None:
    """Make the collaborator's keys, here, and the package that asks for its certificate."""
    from openfed.cli import show
    from openfed.launch.enrol import request_collaborator
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    made = request_collaborator(workspace, name)
    *keys, package = made.paths
    click.echo(f"collaborator {name} of {made.asked.federation}")
    click.echo(f"request    {made.asked.fingerprint()}")
    show.written(workspace.root, keys)
    click.echo(f"  {package.name}  holds no secret; goes to the authority's operator")
    if not silent:
        click.echo("Tell the operator the request's fingerprint, by another way than the package.")
    click.echo(f"Next:  at the authority  fx collaborator certify --request-pkg {package.name}")


@command.command()
@click.option("--request-pkg", type=click.Path(path_type=Path), help="At the authority: a request.")
@click.option(
    "--import", "granted", type=click.Path(path_type=Path), help="What came back from it."
)
@click.option("--until", type=click.DateTime(("%Y-%m-%d",)), help="Last day of the enrolment, UTC.")
@SILENT
@PASSPHRASE
def certify(
    request_pkg: Path | None,
    granted: Path | None,
    until: "datetime | None",
    silent: bool,
    passphrase_file: Path | None,
) -> None:
    """Issue a certificate (at the authority), or install it (at the collaborator)."""
    if (request_pkg is None) == (granted is None):
        raise click.UsageError("expected one of --request-pkg and --import")
    if granted is not None:
        return _import(granted)
    assert request_pkg is not None
    _certify(request_pkg, until, passphrase_file, silent=silent)


def _certify(
    package: Path, until: "datetime | None", passphrase_file: Path | None, *, silent: bool
) -> None:
    import time

    from openfed.cli.certify import compare, end_of_day, office_here
    from openfed.launch.enrol import certify_collaborator, check_asked
    from openfed.pki.package import read_request
    from openfed.workspace import open_workspace

    workspace, asked = open_workspace(), read_request(package)
    office = office_here(workspace, passphrase_file)
    for note in check_asked(office, workspace, asked):
        click.echo(f"note: {note}", err=True)
    click.echo(f"collaborator {asked.name} of {asked.federation}")
    compare(asked, office, f"Does the operator of {asked.name} see the same?", silent=silent)
    made = certify_collaborator(office, workspace, asked, time.time(), end_of_day(until))
    click.echo(f"  {made.name}  holds no secret; goes back to {asked.name}")
    click.echo("  cert/roster.json  a running aggregator reads it within seconds")
    click.echo(f"Next:  at {asked.name}  fx collaborator certify --import {made.name}")


def _import(package: Path) -> None:
    import time

    from openfed.cli import show
    from openfed.launch.enrol import import_certificate
    from openfed.pki.disk import read
    from openfed.pki.leaf import fingerprint
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    peer, paths = import_certificate(workspace, package, time.time())
    click.echo(f"collaborator {peer.name} of {peer.federation}, certified")
    click.echo(f"authority  {fingerprint(read(workspace.cert / 'authority.pem'))}")
    show.written(workspace.root, paths)
    click.echo(f"Next:  fx collaborator approve, then fx collaborator start -n {peer.name}")


@command.command()
@click.option("-n", "--name", required=True, help="The collaborator's name, as the plan has it.")
@click.option("--without-task", "apart", is_flag=True, help="Its task process is elsewhere.")
def start(name: str, apart: bool) -> None:
    """Take part in the plan's run until it ends; waits while the aggregator is not up.

    At a terminal you are shown a plan that the site has not approved yet, and asked. With
    --without-task the task process is in another container, as fx workspace compose has it.
    """
    from openfed.errors import OpenFedError
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    try:
        code = _take_part(workspace, name, apart=apart)
    except OpenFedError as error:
        if error.code != "R23" or not _approved_now(workspace, name):
            raise
        code = _take_part(workspace, name, apart=apart)
    sys.exit(code)


def _take_part(workspace: "Workspace", name: str, *, apart: bool) -> int:
    from openfed.launch.single import start_collaborator
    from openfed.observe.console import console

    with console() as observe:
        return start_collaborator(workspace, name, observe, apart=apart)


def _approved_now(workspace: "Workspace", name: str) -> bool:
    """Whether somebody at the terminal approves the plan, who had not before."""
    from contextlib import redirect_stdout

    from openfed.errors import PolicyError
    from openfed.launch.consent import unapproved

    lock = unapproved(workspace, name)
    if lock is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    try:
        with redirect_stdout(sys.stderr):  # the result of `start` is not this
            _approve(workspace, lock, name)
    except PolicyError as error:
        if error.code != "R26":
            raise
        return False
    return True


@command.command()
@click.option("-n", "--name", help="The site that approves. Default: the one of this workspace.")
@click.argument("digest", required=False)
@click.option("--silent", is_flag=True, help="Ask nothing: approve whatever is here.")
def approve(name: str | None, digest: str | None, silent: bool) -> None:
    """Review the frozen plan and approve it for a site: nothing of it runs there before.

    Shows who signed it, and what differs from what the site approved last. DIGEST is consent by
    itself: that of the plan that you have reviewed, or that was sent to you by other means.
    """
    from openfed.launch.consent import site_name
    from openfed.plan.lock import read_lock
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    site, lock = site_name(workspace, name), read_lock(workspace.lock)
    _approve(workspace, lock, site, digest, silent=silent)


def _approve(
    workspace: "Workspace",
    lock: "Lock",
    site: str,
    digest: str | None = None,
    *,
    silent: bool = False,
) -> None:
    import time

    from openfed.cli import show
    from openfed.launch.consent import approve

    _consent(workspace, lock, site, digest, silent=silent)
    signed, paths = approve(workspace, lock, site, time.time())
    click.echo(f"plan {signed.digest} approved by {signed.who}")
    show.written(workspace.root, paths)


def _consent(
    workspace: "Workspace", lock: "Lock", site: str, digest: str | None, *, silent: bool
) -> None:
    """Show the plan and ask, where that is still needed. Raises: PolicyError."""
    from openfed.errors import PolicyError
    from openfed.launch import consent
    from openfed.launch.sites import words_of
    from openfed.observe.text import clean

    for line in consent.review(workspace, lock, site, words_of(workspace)):
        click.echo(clean(line, limit=1 << 30))
    terminal = sys.stdin.isatty()
    asked = consent.check_consent(lock, site, digest, silent=silent, terminal=terminal)
    if asked and not click.confirm(f"Approve plan {lock.digest[:16]} for {site}?"):
        raise PolicyError("R26", "the plan was not approved; nothing was written")


@command.command()
@click.option("--token", "given", help="From fx pki token.")
@click.option("--token-file", type=click.File("r"), help="Where it is; - for standard input.")
@click.option("--ca", required=True, help="The authority's fingerprint: sha256:...")
def enroll(given: str | None, token_file: "TextIO | None", ca: str) -> None:
    """Enrol this site with a one-time token: keys are made here, the certificate is fetched.

    Nothing is sent before the server has shown that it is the authority of that fingerprint. It
    is reached through the proxy of site.yaml, if that names one. If it is interrupted, do it again.
    """
    from openfed.cli import show
    from openfed.launch.sites import enrol
    from openfed.pki.token import parse_token
    from openfed.workspace import open_workspace

    if (given is None) == (token_file is None):
        raise click.UsageError("expected one of --token and --token-file")
    workspace = open_workspace()
    token = parse_token(token_file.read(1 << 16) if token_file else given or "")
    paths = enrol(workspace, token, ca)
    click.echo(f"{token.role} {token.name} of {token.federation}, certified\nauthority  {ca}")
    show.written(workspace.root, paths)
    click.echo(f"Next:  fx collaborator approve, then fx collaborator start -n {token.name}")
