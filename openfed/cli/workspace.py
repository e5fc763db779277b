"""`fx workspace ...`"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from openfed.cli.certify import PASSPHRASE

if TYPE_CHECKING:
    from openfed.workspace import Workspace


@click.group()
def command() -> None:
    """Create, export, import a workspace; its authority and images; come from OpenFL."""


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
@click.option(
    "--prefix",
    type=click.Path(path_type=Path),
    help="The folder. Default: this one, if it is a workspace; else one of the archive's name.",
)
def import_(archive: Path, prefix: Path | None) -> None:
    """Make a workspace from an archive, or bring its plan into one of the same federation.

    The archive is checked before anything is written. In a workspace, plan/, src/ and
    requirements.txt are replaced as a whole; keys, settings, approvals, runs and logs are left as
    they are. The new plan has to be approved before anything of it runs.
    """
    from openfed import travel
    from openfed.cli import show

    made = travel.import_archive(archive, prefix)
    name, cd = made.root.resolve().name, "" if made.root == Path() else f"cd {made.root}  &&  "
    click.echo(f"{name}: {'new plan and code' if made.before else 'imported'} from {archive}")
    click.echo(f"plan   {made.digest}")
    click.echo(f"was    {made.before}\n" if made.before else "", nl=False)
    show.written(made.root, [made.root / name for name in made.names])
    if made.before:
        look = "diff" if (made.root / "approved").is_dir() else "explain"
        click.echo(f"Next:  {cd}fx plan {look}")
        click.echo("then:  fx collaborator approve; nothing of a new plan runs here before that")
    else:
        click.echo(f"Next:  {cd}fx plan explain")
        click.echo("then:  fx collaborator create -n NAME -d DATA")


@command.command()
@click.option("--role", required=True, type=click.Choice(["aggregator", "collaborator"]))
@click.option("-n", "--name", help="The collaborator's name, as the plan has it.")
@click.option("--user", metavar="UID:GID", help="Default: site.yaml's, or the workspace's owner.")
def compose(role: str, name: str | None, user: str | None) -> None:
    """Write compose.yaml: this node as services of Docker Compose, for sites that run it so."""
    from openfed.cli import show
    from openfed.launch.compose import compose_aggregator, compose_collaborator
    from openfed.workspace import open_workspace

    if (role == "collaborator") != (name is not None):
        raise click.UsageError("expected -n NAME with --role collaborator, and not with aggregator")
    workspace = open_workspace()
    made = (
        compose_collaborator(workspace, name, user) if name else compose_aggregator(workspace, user)
    )
    show.written(workspace.root, made.paths)
    for text in made.notes:
        click.echo(f"note: {text}", err=True)
    click.echo("Next:  docker compose up -d")


@command.command()
@click.option("--base", help="The image to build on. Default: python:3.11-slim-bookworm.")
@click.option(
    "--wheelhouse",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of wheels to install from; nothing of the build then has a network.",
)
@click.option(
    "--save",
    "file",
    type=click.Path(path_type=Path),
    help="Also write images and workspace into one file, for `docker load` at a site.",
)
@click.option("--files", is_flag=True, help="Only write the Dockerfiles; build nothing.")
def dockerize(base: str | None, wheelhouse: Path | None, file: Path | None, files: bool) -> None:
    """Build the images of this workspace: of nodes, and of the process that sees data."""
    from openfed.launch.images import BASE
    from openfed.workspace import open_workspace

    if files and file:
        raise click.UsageError("--files builds no images that --save could write")
    workspace = open_workspace()
    if files:
        return _write_dockerfiles(workspace, base or BASE, wheelhouse is not None)
    _build_images(workspace, base or BASE, wheelhouse, file)


def _write_dockerfiles(workspace: "Workspace", base: str, wheels: bool) -> None:
    from openfed.cli import show
    from openfed.launch.images import images, write_files

    show.written(workspace.root, write_files(workspace, base, wheels))
    if wheels:
        click.echo("Put the wheels into wheelhouse/ of this workspace.")
    for before, image in zip(("Next:", "then:"), images(workspace, base, wheels), strict=True):
        dockerfile = f"docker/{image.role}.Dockerfile"
        click.echo(f"{before}  docker build -f {dockerfile} -t {image.tag} {workspace.root}")


def _build_images(
    workspace: "Workspace", base: str, wheelhouse: Path | None, file: Path | None
) -> None:
    from openfed.cli import show
    from openfed.observe.text import one_line, size

    with show.docker_needed():
        from openfed.launch import dockerize as engine
    if file:
        engine.check_saving(workspace, file)
    told = engine.dockerize(
        workspace, base, wheelhouse, lambda line: click.echo(one_line(line, 400), err=True)
    )
    for each in told:
        click.echo(f"{each.image.tag}  {size(each.size)}, {size(each.added)} over {base}")
    click.echo("note: `docker image prune` frees what only the builds needed", err=True)
    if file:
        saved = engine.save(workspace, told, file)
        click.echo(f"{saved.path}  {size(saved.size)}\nsha256 {saved.sha256}")
        click.echo(
            f"Next:  at the site  docker load -i {saved.path.name}  (LOAD.md in it says more)"
        )


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
