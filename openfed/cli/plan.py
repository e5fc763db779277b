"""`fx plan ...`"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openfed.cli.run import JSON, OVERRIDE

if TYPE_CHECKING:
    from openfed.plan.schema import Plan
    from openfed.workspace import Workspace

WHOLE = 1 << 30
"""Characters: what people consent to is never cut short."""


@click.group()
def command() -> None:
    """Initialize, check, explain, sign and compare the plan."""


@command.command()
@click.option("-a", "--address", help="The aggregator's name or address, as collaborators dial it.")
@OVERRIDE
def initialize(address: str | None, overrides: tuple[str, ...]) -> None:
    """Make the initial model and freeze the plan into plan.lock."""
    from openfed.plan.load import load_plan
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    given = (*overrides, f"aggregator.advertise=[{json.dumps(address)}]") if address else overrides
    _freeze(workspace, load_plan(workspace.plan, given))


def _freeze(workspace: "Workspace", plan: "Plan") -> None:
    from openfed.cli import show
    from openfed.launch.consent import is_signed
    from openfed.launch.initial import initialize as make
    from openfed.launch.processes import Processes

    lock, paths, _ = make(workspace, plan, Processes(), lambda text: click.echo(text, err=True))
    click.echo(f"plan {lock.digest}" + ("" if paths else " (unchanged)"))
    show.written(workspace.root, paths)
    if is_signed(workspace, lock) is False:
        click.echo("note: plan/plan.sig is not of this plan: fx plan sign", err=True)


@command.command()
@OVERRIDE
def freeze(overrides: tuple[str, ...]) -> None:
    """Freeze the plan again as it is now, with the address that it was initialized with."""
    from openfed.launch.consent import kept_address
    from openfed.plan.load import load_plan
    from openfed.plan.lock import read_lock
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    lock, plan = read_lock(workspace.lock), load_plan(workspace.plan, overrides)
    kept = kept_address(plan, lock)
    if kept != plan:
        names = ", ".join(lock.advertise)
        click.echo(f"note: the address stays {names}: fx plan initialize changes it", err=True)
    _freeze(workspace, kept)


@command.command()
@click.option("-n", "--name", default="aggregator", show_default=True, help="The node that signs.")
def sign(name: str) -> None:
    """Sign the frozen plan as its author, with the identity key of a node of this workspace."""
    import time

    from openfed.cli import show
    from openfed.launch.consent import sign_plan
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    signed, paths = sign_plan(workspace, name, time.time())
    click.echo(f"plan {signed.digest}" + ("" if paths else " (signed already)"))
    click.echo(f"signed by {signed.who}")
    show.written(workspace.root, paths)


@command.command()
@click.argument("old", metavar="[A]", required=False)
@click.argument("new", metavar="[B]", required=False)
@JSON
def diff(old: str | None, new: str | None, as_json: bool) -> None:
    """Say what differs between two frozen plans: by default the last approved, and this one.

    A and B are workspaces, plan.lock files, or digests of approved plans. Exits with 0 when they
    are the same plan, with 1 when they differ.
    """
    from openfed.cli import show
    from openfed.launch.consent import compared, difference_json, sides
    from openfed.observe.text import clean
    from openfed.workspace import Workspace

    pair = sides(Workspace(Path.cwd()), old, new)
    if as_json:
        show.as_json(difference_json(*pair))
    else:
        for side in pair:
            click.echo(f"plan {side.content.digest}  {clean(side.label)}")
        for line in compared(*pair):
            click.echo(clean(line, limit=WHOLE))
    sys.exit(int(pair[0].content.digest != pair[1].content.digest))


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
    sites = plural(plan.fewest, "collaborator") + ("" if plan.named else " or more")
    click.echo(f"{workspace.plan}: ok, {plural(plan.rounds, 'round')} with {sites}")


@command.command()
@OVERRIDE
def show(overrides: tuple[str, ...]) -> None:
    """Print the plan with every default written out, and its digest once it is initialized."""
    from openfed.launch.consent import author_words, frozen
    from openfed.plan.load import load_plan
    from openfed.plan.schema import ADDRESSES, canonical
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    plan = load_plan(workspace.plan, overrides)
    lock = frozen(workspace, plan)
    whole = {**canonical(plan), ADDRESSES: plan.aggregator.model_dump(mode="json")}
    click.echo(json.dumps(whole, indent=2, ensure_ascii=False))
    click.echo(f"digest: {lock.digest if lock else 'none yet: fx plan initialize'}", err=True)
    signed = author_words(workspace, lock.digest) if lock else ""
    click.echo(f"signed by: {signed or 'nobody'}", err=True)
    click.echo(f"({ADDRESSES}: its addresses are not in the digest)", err=True)


@command.command()
@OVERRIDE
def explain(overrides: tuple[str, ...]) -> None:
    """Say in plain words what will run where, what travels, what stays, and who sees what."""
    from openfed.launch.consent import explained, frozen
    from openfed.launch.initial import known_signature
    from openfed.launch.sites import words_of
    from openfed.observe.text import clean
    from openfed.plan.load import load_plan
    from openfed.workspace import open_workspace

    workspace = open_workspace()
    plan = load_plan(workspace.plan, overrides)
    lock = frozen(workspace, plan)
    if lock is None and workspace.lock.exists():
        click.echo(
            "note: plan.lock is of another plan or other code; nodes run plan.lock", err=True
        )
    model = known_signature(workspace, plan)
    said = explained(workspace, plan, lock, model, words_of(workspace))
    click.echo(clean(said, limit=WHOLE))


@command.command()
def schema() -> None:
    """Print the JSON Schema of plan.yaml, for editors."""
    from openfed.plan.schema import json_schema

    json.dump(json_schema(), sys.stdout, indent=2)
    click.echo()
