"""`fx ledger ...`"""

import sys
from pathlib import Path

import click

from openfed.cli.run import JSON

FILE = click.Path(path_type=Path)


@click.group()
def command() -> None:
    """Verify what a run's aggregator has written down, against what the sites were told."""


@command.command()
@click.argument("ledger", type=FILE, required=False)
@click.option("--against", type=FILE, multiple=True, help="What a site has kept; may be repeated.")
@click.option("--key", metavar="HEX", help="The aggregator's identity key, if no roster is here.")
@JSON
def verify(ledger: Path | None, against: tuple[Path, ...], key: str | None, as_json: bool) -> None:
    """Name every entry that was changed, taken away, moved, forged or told differently.

    LEDGER is a journal.sqlite or an exported ledger.jsonl; by default the latest run's here. A
    site's file is runs/RUN/agents/NAME/ledger.jsonl in its workspace. Exits with 1 if something is
    wrong.
    """
    from openfed.cli import show
    from openfed.launch.ledger import verified_json, verified_lines, verify_ledger
    from openfed.workspace import Workspace

    found = verify_ledger(Workspace(Path.cwd()), ledger, against, key)
    if as_json:
        show.as_json(verified_json(found))
    else:
        click.echo("\n".join(verified_lines(found)))
    sys.exit(int(bool(found.all_faults)))
