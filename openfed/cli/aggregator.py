"""`fx aggregator ...`"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openfed.cli.certify import PASSPHRASE, SILENT

if TYPE_CHECKING:
    from openfed.store.runs import Mode

FQDN = click.option(
    "--fqdn",
    "hosts",
    multiple=True,
    help="A name or address it is reached at. Default: the plan's.",
)


@click.group()
def command() -> None:
    """Certify and start the aggregator of this workspace."""


@command.command("generate-cert-request")
@FQDN
def generate_cert_request(hosts: tuple[str, ...]) -> None:
    """Make the aggregator's keys, and note the names that its certificate is to have."""
    from openfed.cli import show
    from openfed.launch.enrol import aggregator_hosts, request_aggregator
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    made = request_aggregator(workspace, hosts)
    click.echo(f"aggregator of {made.asked.federation}, reached at ", nl=False)
    click.echo(", ".join(aggregator_hosts(workspace, hosts)))
    click.echo(f"request    {made.asked.fingerprint()}")
    show.written(workspace.root, made.paths)
    click.echo("Next:  fx aggregator certify")


@command.command()
@FQDN
@SILENT
@PASSPHRASE
def certify(hosts: tuple[str, ...], silent: bool, passphrase_file: Path | None) -> None:
    """Issue the aggregator's certificate; the authority is in this workspace."""
    import time

    from openfed.cli import show
    from openfed.cli.certify import compare, office_here
    from openfed.launch.enrol import aggregator_hosts, certify_aggregator, request_aggregator
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    office = office_here(workspace, passphrase_file)
    made, named = request_aggregator(workspace, ()), aggregator_hosts(workspace, hosts)
    click.echo(f"aggregator of {office.federation}, reached at {', '.join(named)}")
    compare(made.asked, office, "Was this request made here, for these hosts?", silent=silent)
    paths = certify_aggregator(office, workspace, made, named, time.time())
    show.written(workspace.root, paths)
    click.echo("Next:  fx aggregator start")


@command.command()
@click.option("--new", is_flag=True, help="Begin another run, whatever became of the latest.")
@click.option("--listen", metavar="HOST:PORT", help="Listen here, not where the plan says.")
def start(new: bool, listen: str | None) -> None:
    """Serve the plan's run until it ends; resumes an interrupted one, ends if it is complete."""
    from openfed.launch.single import start_aggregator
    from openfed.observe.console import console
    from openfed.transport.handshakes import apart
    from openfed.workspace import open_workspace

    mode: Mode = "new" if new else "auto"
    with apart(), console() as observe:  # what is shown does not go where gRPC's lines are counted
        code = start_aggregator(open_workspace(), mode, observe, listen)
    sys.exit(code)
