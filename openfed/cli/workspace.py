"""`fx workspace ...`"""

from pathlib import Path

import click


@click.group()
def command() -> None:
    """Create a workspace; list the templates."""


@command.command()
@click.option("--prefix", required=True, type=click.Path(path_type=Path), help="The new folder.")
@click.option("--template", required=True, help="One of `fx workspace templates`.")
def create(prefix: Path, template: str) -> None:
    """Create a workspace from a template, in a folder that is not there or empty."""
    from openfed import workspace
    from openfed.cli import show

    paths = workspace.create(prefix, template)
    click.echo(f"{prefix}: created from {template}")
    show.written(prefix, paths)
    click.echo(f"Next:  cd {prefix}  &&  fx run")


@command.command()
def templates() -> None:
    """List the templates that ship."""
    from openfed import workspace

    for name, folder in workspace.templates().items():
        click.echo(f"{name:<24}{workspace.about(folder)}")
