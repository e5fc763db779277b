"""`fx demo`"""

import sys
import tempfile
from pathlib import Path

import click

from openfed.cli.run import JSON, OVERRIDE, run


@click.command()
@click.argument("name", default="torch_digits")
@OVERRIDE
@JSON
def command(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Create a workspace from the template NAME in a temporary folder, and run it."""
    from openfed.workspace import create

    folder = Path(tempfile.mkdtemp(prefix=f"openfed-{name}-"))
    create(folder, name)
    click.echo(f"fx demo {name}: the workspace is {folder}", err=True)
    code = run(str(folder), overrides, "auto", as_json=as_json)
    if not as_json:
        click.echo(f"\nThe whole workspace is yours to read and change:  cd {folder}  &&  fx run")
    sys.exit(code)
