"""`fx doctor`"""

import sys

import click

from openfed.cli.run import JSON


@click.command()
@click.option("-n", "--name", help="A collaborator, or aggregator. Default: whoever is here.")
@JSON
def command(name: str | None, as_json: bool) -> None:
    """Look for what would keep this node from taking part, and say what to do about it.

    Ends with the exit code of the first failure: 2 plan or workspace, 3 certificate, 4 network,
    6 refused.
    """
    from openfed.cli import show
    from openfed.launch.doctor import examine
    from openfed.launch.findings import as_told, exit_code, shown
    from openfed.observe.text import clean
    from openfed.workspace import open_workspace

    findings = []
    for finding in examine(open_workspace(), name):
        findings.append(finding)
        for line in () if as_json else shown(finding):
            click.echo(clean(line))
    if as_json:
        show.as_json(as_told(findings))
    sys.exit(exit_code(findings))
