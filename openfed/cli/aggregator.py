"""`fx aggregator ...`"""

import sys

import click


@click.group()
def command() -> None:
    """Start the aggregator of this workspace."""


@command.command()
@click.option("--new", is_flag=True, help="Begin another run, whatever became of the latest.")
def start(new: bool) -> None:
    """Serve the plan's run until it ends; resumes an interrupted one, ends if it is complete."""
    from openfed.launch.single import start_aggregator
    from openfed.observe.console import console
    from openfed.workspace import open_workspace

    with console() as observe:
        code = start_aggregator(open_workspace(), "new" if new else "auto", observe)
    sys.exit(code)
