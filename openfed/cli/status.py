"""`fx status`"""

import click

from openfed.cli.run import JSON


@click.command()
@JSON
def command(as_json: bool) -> None:
    """Say where the latest run of this workspace stands."""
    from openfed.cli import show
    from openfed.launch.status import latest, status, status_lines
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    view = latest(workspace)
    found = status(workspace, view)
    show.as_json(found) if as_json else click.echo("\n".join(status_lines(found, view)))
