"""`fx`: flags -> one call -> print. Commands are imported when they are used, not before."""

import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from openfed import __version__
from openfed.errors import OpenFedError, TaskError, exhausted

COMMANDS = {
    "run": "Run the whole federation of this workspace on this machine.",
    "demo": "Create a workspace from the template NAME in a temporary folder, and run it.",
    "workspace": "Create, export, import a workspace; its authority and images; come from OpenFL.",
    "plan": "Initialize, check, explain, sign and compare the plan.",
    "aggregator": "Certify and start the aggregator of this workspace.",
    "collaborator": "Certify, approve for and start one collaborator of this workspace.",
    "pki": "Show, renew and revoke the federation's certificates; replace its root.",
    "ledger": "Verify what a run's aggregator has written down, against what the sites were told.",
    "model": "Convert and inspect model files.",
    "status": "Say where the latest run of this workspace stands.",
    "doctor": "Look for what would keep this node from taking part, and say what to do about it.",
    "explain": "Explain an error code: what it means, and what to do.",
}
"""Name and summary; the command is the attribute `command` of `openfed.cli.<name>`."""

INTERRUPTED = 130


class Lazy(click.Group):
    """A group whose commands are modules beside this one, imported only when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"openfed.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, invoke_without_command=True, context_settings={"max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(__version__, prog_name="fx")
@click.pass_context
def fx(ctx: click.Context, debug: bool) -> None:
    """One plan, real certificates, one model from everybody's data.

    Start with `fx demo`.
    """
    if ctx.invoked_subcommand is None:
        from openfed.cli.next import next_step
        from openfed.workspace import Workspace

        click.echo(ctx.get_help())
        click.echo(f"\nNext: {next_step(Workspace(Path('.')))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The process: every error becomes lines on standard error and an exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        code: Any = fx.main(args=list(arguments), prog_name="fx", standalone_mode=False)
    except click.ClickException as error:
        code = error.exit_code
        error.show()
    except (click.Abort, KeyboardInterrupt):
        code = INTERRUPTED
        click.echo("Interrupted.", err=True)
    except Exception as error:  # noqa: BLE001 (what is not told there is raised again)
        code = _failed(error, debug="--debug" in arguments)
    sys.exit(code if isinstance(code, int) else 0)


def _failed(error: Exception, *, debug: bool) -> int:
    """Tell what failed. Returns: the exit code. Raises: the error, if it is a bug of ours."""
    if (told := exhausted(error)) is not None:
        error = OpenFedError("S12", told)
    if not isinstance(error, OpenFedError):
        raise error
    _tell(error, debug=debug)
    return error.exit_code


def _tell(error: OpenFedError, *, debug: bool) -> None:
    from openfed.observe.text import clean, indented

    if debug:
        traceback.print_exc()
    click.echo(clean(error, limit=100_000), err=True)
    if isinstance(error, TaskError):
        for line in indented(error.traceback):
            click.echo(line, err=True)
    click.echo(f"(more: fx explain {error.code})", err=True)
