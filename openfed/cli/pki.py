"""`fx pki ...`"""

from pathlib import Path
from typing import Any

import click

from openfed.cli.certify import PASSPHRASE
from openfed.cli.run import JSON


@click.group()
def command() -> None:
    """Show, renew and revoke the federation's certificates; replace its root."""


@command.command("list")
@JSON
def list_(as_json: bool) -> None:
    """Everybody who is enrolled: name, role, serial, days left, state."""
    import time

    from openfed.cli import show
    from openfed.launch.enrol import node_row
    from openfed.pki.office import open_office
    from openfed.workspace import open_workspace

    office, now = open_office(open_workspace().cert), time.time()
    rows = [node_row(node, now) for node in office.nodes()]
    if as_json:
        told = {"federation": office.federation, "fingerprint": office.fingerprint()}
        show.as_json({**told, "nodes": rows})
        return
    click.echo(f"{office.federation}  {office.fingerprint()}")
    for row in rows:
        click.echo(_row(row))


def _row(row: dict[str, Any]) -> str:
    left = "" if row["days_left"] is None else f"{row['days_left']:.1f} days"
    serial, reason = row["serial"] or "-", f": {row['reason']}" if row["reason"] else ""
    return f"  {row['name']:<20}  {row['role']:<12}  {serial}  {left:>11}  {row['state']}{reason}"


@command.command()
@click.option("-n", "--name", required=True, help="The node, as `fx pki list` shows it.")
@click.option("--reason", default="", help="For the record, and for those who ask.")
@PASSPHRASE
def revoke(name: str, reason: str, passphrase_file: Path | None) -> None:
    """Take back a node's admission, with every certificate that it was issued."""
    import time

    from openfed.cli.certify import office_here
    from openfed.observe.text import plural
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    office = office_here(workspace, passphrase_file)
    node = office.revoke(name, reason, time.time())
    click.echo(f"{name} is revoked, with {plural(len(node.issued), 'certificate')}")
    click.echo("  cert/roster.json  a running aggregator reads it within seconds")


@command.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: standard output.")
@PASSPHRASE
def crl(output: Path | None, passphrase_file: Path | None) -> None:
    """Write the revoked certificates as a CRL (PEM), for other software; good for a week."""
    import time

    from openfed.cli.certify import office_here
    from openfed.files import write_whole
    from openfed.workspace import open_workspace

    text = office_here(open_workspace(), passphrase_file).crl(time.time())
    if output is None:
        click.echo(text.decode("ascii"), nl=False)
    else:
        click.echo(f"wrote {write_whole(output, text)}: public")


@command.command()
def fingerprint() -> None:
    """Print the fingerprint of the authority that is trusted here; the newest, in a roll-over."""
    from openfed.pki.disk import read
    from openfed.pki.leaf import fingerprint as of
    from openfed.workspace import open_workspace

    click.echo(of(read(open_workspace().cert / "authority.pem")))


@command.command("roll-over")
@click.option("--finish", is_flag=True, help="Drop the old root.")
@click.option("--force", is_flag=True, help="With --finish: even if nodes are left out.")
@PASSPHRASE
def roll_over(finish: bool, force: bool, passphrase_file: Path | None) -> None:
    """Replace the authority's root: begin, renew everybody, then --finish.

    In between both roots are trusted, and nodes that know only the old one accept what the new one
    issues. Nodes learn of the new root with their next certificate.
    """
    import time

    from openfed.cli.certify import office_here
    from openfed.workspace import open_workspace

    if force and not finish:
        raise click.UsageError("--force goes with --finish")
    office = office_here(open_workspace(), passphrase_file)
    if finish:
        office.finish_roll_over(time.time(), force=force)
        click.echo(f"only the new root counts: {office.fingerprint()}")
        return
    office.roll_over(time.time())
    click.echo(f"a new root signs from now on: {office.fingerprint()}")
    click.echo("  cert/authority.pem  both roots; goes to every node, with its next certificate")
    click.echo("Next:  renew or certify every node (fx pki list), then fx pki roll-over --finish")


@command.command()
@click.option("-n", "--name", required=True, help="A node whose keys are in this workspace.")
@PASSPHRASE
def renew(name: str, passphrase_file: Path | None) -> None:
    """Issue a new certificate to a node that is here, for the hosts that the plan has now."""
    import time

    from openfed.cli import show
    from openfed.cli.certify import office_here
    from openfed.launch.enrol import renew_here
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    office = office_here(workspace, passphrase_file)
    paths = renew_here(office, workspace, name, time.time())
    click.echo(f"{name}: a new certificate for the same key")
    show.written(workspace.root, paths)


def _address(_: click.Context, option: click.Parameter, value: str | None) -> str | None:
    from openfed.parse import split_address

    try:
        if value is not None:
            split_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error), param=option) from None
    return value


@command.command()
@click.option("-n", "--name", required=True, help="Whom the token lets enrol.")
@click.option("--role", type=click.Choice(["collaborator"]), default="collaborator")
@click.option("--hours", type=click.FloatRange(0, 720, min_open=True), default=24.0)
@click.option("--address", callback=_address, help="Where the site reaches the authority.")
@click.option("--withdraw", is_flag=True, help="Take back the token of this name.")
@JSON
def token(
    name: str, role: str, hours: float, address: str | None, withdraw: bool, as_json: bool
) -> None:
    """Print a token with which a site enrols itself, once: no files go to and fro.

    It is a secret. By default it names the aggregator's host, at the port after the aggregator's.
    """
    import time

    from openfed.cli import show
    from openfed.launch.authority import mint_token, take_back
    from openfed.workspace import open_workspace

    workspace, now = open_workspace(), time.time()
    if withdraw:
        take_back(workspace, name, now)
        click.echo(f"the token for {name} is withdrawn")
        return
    made = mint_token(workspace, name, role, hours * 3600, address, now)
    show.minted(made, as_object=as_json)


@command.command()
@click.option("--listen", callback=_address, help="For enrolment. Default: one after the plan's.")
@click.option(
    "--desk", type=click.Path(path_type=Path), help="For renewal. Default: runs/authority.sock."
)
@PASSPHRASE
def serve(listen: str | None, desk: Path | None, passphrase_file: Path | None) -> None:
    """Be the authority until Ctrl-C: enrol by token, and renew for the aggregator.

    The enrolment port is open only while a token is outstanding. The desk is a Unix socket.
    """
    from openfed.cli.certify import passphrase_here
    from openfed.launch.authority import serve_authority
    from openfed.observe.text import one_line
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    passphrase = passphrase_here(workspace, passphrase_file)
    serve_authority(
        workspace,
        lambda text: click.echo(one_line(text), err=True),
        listen=listen,
        desk=desk.absolute() if desk else None,
        passphrase=passphrase,
    )
