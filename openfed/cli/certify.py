"""What the commands that certify share: the passphrase, and the comparison of fingerprints."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from datetime import datetime

    from openfed.pki.office import Office
    from openfed.pki.package import Asked
    from openfed.workspace import Workspace

PASSPHRASE = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help="A file whose first line is the passphrase of the authority's key.",
)
SILENT = click.option("--silent", is_flag=True, help="Ask nothing: fingerprints were compared.")


def office_here(workspace: "Workspace", passphrase_file: Path | None) -> "Office":
    """The authority of this workspace, its key opened where that takes a passphrase."""
    from openfed.pki.office import open_office

    return open_office(workspace.cert, passphrase_here(workspace, passphrase_file))


def passphrase_here(workspace: "Workspace", passphrase_file: Path | None) -> bytes | None:
    """Of the file, or typed at a terminal where the authority's key needs one."""
    from openfed.pki.office import open_office

    if passphrase_file or not open_office(workspace.cert).encrypted or not sys.stdin.isatty():
        return given_passphrase(passphrase_file)
    typed: str = click.prompt("Passphrase of the authority", hide_input=True, err=True)
    return typed.encode()


def given_passphrase(path: Path | None) -> bytes | None:
    """The first line of the file. Raises C42: it is empty."""
    from openfed.errors import CertificateError

    if path is None:
        return None
    lines = path.read_bytes().splitlines()
    if not lines or not lines[0]:
        raise CertificateError("C42", f"{path}: expected a passphrase in its first line")
    return lines[0]


def new_passphrase(path: Path | None) -> bytes | None:
    """For a new authority: of the file, or typed twice at a terminal, or none."""
    if path is not None or not sys.stdin.isatty():
        return given_passphrase(path)
    typed = click.prompt(
        "Passphrase for the authority's key (empty for none)",
        default="",
        show_default=False,
        hide_input=True,
        confirmation_prompt=True,
        err=True,
    )
    return typed.encode() or None


def compare(asked: "Asked", office: "Office", question: str, *, silent: bool) -> None:
    """Show both fingerprints and ask. Raises C41: no, or nobody is here to answer."""
    from openfed.errors import CertificateError

    click.echo(f"request    {asked.fingerprint()}")
    click.echo(f"authority  {office.fingerprint()}")
    if silent:
        return
    if not sys.stdin.isatty():
        raise CertificateError("C41", "nobody is at a terminal to compare the fingerprints")
    if not click.confirm(question, err=True):
        raise CertificateError("C41", "the fingerprints were not confirmed; nothing was issued")


def end_of_day(day: "datetime | None") -> float | None:
    """Seconds since the epoch when that day is over, UTC."""
    from datetime import UTC, timedelta

    return (day.replace(tzinfo=UTC) + timedelta(days=1)).timestamp() if day else None
