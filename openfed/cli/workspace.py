"""`fx workspace ...`"""

from pathlib import Path

import click

from openfed.cli.certify import PASSPHRASE


@click.group()
def command() -> None:
    """Create, export and import a workspace; certify its authority; come from OpenFL."""


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


@command.command()
@PASSPHRASE
def certify(passphrase_file: Path | None) -> None:
    """Make the authority of this workspace's federation, in cert/authority; once."""
    import time

    from openfed.cli import show
    from openfed.cli.certify import given_passphrase, new_passphrase
    from openfed.launch.enrol import federation_of
    from openfed.pki.office import create_office, open_office
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    federation, here = federation_of(workspace), (workspace.cert / "authority").exists()
    passphrase = (given_passphrase if here else new_passphrase)(passphrase_file)
    paths = create_office(workspace.cert, federation, time.time(), passphrase=passphrase)
    click.echo(f"authority of {federation}" + (", as it was" if here else ""))
    click.echo(f"fingerprint {open_office(workspace.cert).fingerprint()}")
    show.written(workspace.root, paths)
    click.echo("Next:  fx aggregator certify, and fx workspace export for the sites")


@command.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The archive to write.")
def export(output: Path | None) -> None:
    """Write plan, lock and code into an archive for the sites; nothing else leaves."""
    from openfed import travel
    from openfed.cli import show
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    made = travel.export(workspace, output)
    click.echo(f"{made.path}" + ("" if made.fresh else " (unchanged)"))
    click.echo(f"sha256 {made.sha256}")
    click.echo(f"plan   {made.digest}")
    show.written(workspace.root, [workspace.root / name for name in made.names])
    click.echo("Next:  at each site  fx workspace import --archive " + made.path.name)


@command.command("import")
@click.option("--archive", required=True, type=click.Path(path_type=Path), help="From export.")
@click.option("--prefix", type=click.Path(path_type=Path), help="The new folder.")
def import_(archive: Path, prefix: Path | None) -> None:
    """Make a workspace from an archive: checked, in a folder that is not there or empty."""
    from openfed import travel
    from openfed.cli import show

    made = travel.import_archive(archive, prefix)
    click.echo(f"{made.root}: imported from {archive}")
    click.echo(f"plan   {made.digest}")
    show.written(made.root, [made.root / name for name in made.names])
    click.echo(f"Next:  cd {made.root}  &&  fx plan explain")
    click.echo("then:  fx collaborator create -n NAME -d DATA")


@command.command("import-openfl")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--prefix", type=click.Path(path_type=Path), help="The new folder.")
def import_openfl(folder: Path, prefix: Path | None) -> None:
    """Make a workspace from one of OpenFL's (task runners of PyTorch), and say key by key how."""
    from openfed.cli import show
    from openfed.migrate.translate import TODO
    from openfed.migrate.write import import_openfl as translate
    from openfed.observe.text import one_line

    made = translate(folder, prefix)
    click.echo(f"{made.root}: imported from {folder}")
    for row in made.rows:
        line = one_line(f"{row.key}: {row.found} -> {row.says}", 400)
        click.echo(f"  {row.verdict:<12}{line}")
    show.written(made.root, made.files)
    for row in (row for row in made.rows if row.verdict == TODO):
        click.echo(one_line(f"to do: {row.key}: {row.found}: {row.says}", 400), err=True)
    click.echo(f"Next:  cd {made.root}  &&  fx plan explain  &&  fx run")
