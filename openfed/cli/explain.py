"""`fx explain CODE`"""

import click

from openfed.errors import CODES, UsageError


@click.command()
@click.argument("code")
def command(code: str) -> None:
    """Explain an error code: what it means, and what to do."""
    entry = CODES.get(code.upper())
    if entry is None:
        raise UsageError("U14", f"{code!r} is no error code; codes look like {next(iter(CODES))}")
    click.echo(f"{code.upper()}  {entry.title}\n\n{entry.cause}\n\nWhat to do: {entry.remedy}")
