"""`fx plan ...`"""

import json
import sys

import click

from openfed.cli.run import OVERRIDE


@click.group()
def command() -> None:
    """Initialize, check, show and explain the plan."""


@command.command()
@click.option("-a", "--address", help="The aggregator's name or address, as collaborators dial it.")
@OVERRIDE
def initialize(address: str | None, overrides: tuple[str, ...]) -> None:
    """Make the initial model and freeze the plan into plan.lock."""
    from openfed.cli import show
    from openfed.launch.initial import initialize as make
    from openfed.launch.processes import Processes
    from openfed.plan.load import load_plan
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    given = (*overrides, f"aggregator.advertise=[{json.dumps(address)}]") if address else overrides
    plan = load_plan(workspace.plan, given)
    lock, paths, _ = make(workspace, plan, Processes(), lambda text: click.echo(text, err=True))
    click.echo(f"plan {lock.digest}" + ("" if paths else " (unchanged)"))
    show.written(workspace.root, paths)


@command.command()
@OVERRIDE
def check(overrides: tuple[str, ...]) -> None:
    """Find every mistake in the plan, without importing or starting anything."""
    from openfed.launch.initial import check_pipeline, known_signature
    from openfed.observe.text import plural
    from openfed.plan.chains import advice
    from openfed.plan.load import load_plan
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    plan = load_plan(workspace.plan, overrides)
    check_pipeline(workspace, plan, known_signature(workspace, plan), overrides)
    for line in advice(plan):
        click.echo(f"note: {line}", err=True)
    sites = len(plan.collaborators)
    click.echo(
        f"{workspace.plan}: ok, {plural(plan.rounds, 'round')} with {plural(sites, 'collaborator')}"
    )


@command.command()
@OVERRIDE
def show(overrides: tuple[str, ...]) -> None:
    """Print the plan with every default written out, and its digest once it is initialized."""
    from openfed.launch.initial import current_lock
    from openfed.plan.load import load_plan
    from openfed.plan.schema import ADDRESSES, canonical
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    plan = load_plan(workspace.plan, overrides)
    lock = current_lock(workspace, plan)
    whole = {**canonical(plan), ADDRESSES: plan.aggregator.model_dump(mode="json")}
    click.echo(json.dumps(whole, indent=2, ensure_ascii=False))
    click.echo(f"digest: {lock.digest if lock else 'none yet: fx plan initialize'}", err=True)
    click.echo(f"({ADDRESSES}: its addresses are not in the digest)", err=True)


@command.command()
@OVERRIDE
def explain(overrides: tuple[str, ...]) -> None:
    """Say in plain words what will run where, what travels, what stays, and who sees what."""
    from openfed.codec.advice import ratio
    from openfed.launch.initial import current_lock, known_signature
    from openfed.plan.chains import ways
    from openfed.plan.explain import code_lines
    from openfed.plan.explain import explain as in_words
    from openfed.plan.load import load_plan
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    plan = load_plan(workspace.plan, overrides)
    lock = current_lock(workspace, plan)
    model = known_signature(workspace, plan)
    sizes = {way: ratio(direction, model) for way, direction in ways(plan.compression_pipeline)}
    click.echo(in_words(plan, lock, code_lines(workspace.root, lock) if lock else {}, sizes))


@command.command()
def schema() -> None:
    """Print the JSON Schema of plan.yaml, for editors."""
    from openfed.plan.schema import json_schema

    json.dump(json_schema(), sys.stdout, indent=2)
    click.echo()
