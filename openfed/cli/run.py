"""`fx run`"""

import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from openfed.launch.places import Placed
    from openfed.store.runs import Mode

OVERRIDE = click.option(
    "-s", "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override the plan."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


@click.command()
@OVERRIDE
@click.option("--new", is_flag=True, help="Begin a run, even if one can be resumed.")
@click.option("--resume", is_flag=True, help="Resume, or fail.")
@click.option(
    "--launcher",
    type=click.Choice(["process", "docker"]),
    default="process",
    help="What every node is: a process, or a container.",
)
@JSON
def command(
    overrides: tuple[str, ...], new: bool, resume: bool, launcher: str, as_json: bool
) -> None:
    """Run the whole federation of this workspace on this machine.

    Issues certificates, starts the aggregator and every collaborator, each a process of its own,
    shows every round, and says where the model is. An interrupted run of the same plan is resumed.
    """
    if new and resume:
        raise click.UsageError("--new and --resume exclude each other")
    mode: Mode = "new" if new else "resume" if resume else "auto"
    sys.exit(run(".", overrides, mode, launcher, as_json=as_json))


def run(
    root: str,
    overrides: tuple[str, ...],
    mode: "Mode",
    launcher: str = "process",
    *,
    as_json: bool,
) -> int:
    """Run a workspace, show it, print its result; the exit code."""
    from openfed.cli import show
    from openfed.launch.federation import run_federation
    from openfed.observe.console import console
    from openfed.workspace import open_workspace

    with console(quiet=() if as_json else ("run.ended",)) as observe:  # the result says it
        ended = run_federation(open_workspace(root), overrides, mode, observe, place(launcher))
    show.as_json(ended.json) if as_json else show.result(ended)
    return ended.exit_code


def place(launcher: str) -> "Placed":
    from openfed.cli import show
    from openfed.launch.places import on_this_machine

    if launcher == "process":
        return on_this_machine
    with show.docker_needed():
        from openfed.launch.containers import in_containers
    return in_containers
