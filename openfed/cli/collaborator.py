"""`fx collaborator ...`"""

import sys

import click


@click.group()
def command() -> None:
    """Start one collaborator of this workspace."""


@command.command()
@click.option("-n", "--name", required=True, help="The collaborator's name, as the plan has it.")
def start(name: str) -> None:
    """Take part in the plan's run until it ends; waits while the aggregator is not up."""
    from openfed.launch.single import start_collaborator
    from openfed.observe.console import console
    from openfed.workspace import open_workspace

    with console() as observe:
        code = start_collaborator(open_workspace(), name, observe)
    sys.exit(code)
