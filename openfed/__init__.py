"""openfed: one plan, real certificates, one model from everybody's data."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openfed.launch.result import Result

__version__ = "0.1.0"
__all__ = ["run"]


def run(plan: str | Path = ".", overrides: Sequence[str] = ()) -> "Result":
    """Run a federation on this machine, as `fx run` does, and show its progress.

    `plan` is a workspace's folder or its plan/plan.yaml; `overrides` are `key.path=value`.
    Returns what `fx run --json` prints, with the history as a DataFrame; a run that failed too.
    Raises: OpenFedError: there was no run; the message says what to do.

    >>> result = openfed.run("my_workspace", ["rounds=3"])  # doctest: +SKIP
    >>> result.json["metrics"], result.history              # doctest: +SKIP
    """
    from openfed.launch.federation import run_federation  # noqa: PLC0415  (`import openfed` is
    from openfed.observe.console import console  # noqa: PLC0415  light: fx --help, task processes)
    from openfed.workspace import open_workspace  # noqa: PLC0415

    with console() as observe:
        return run_federation(open_workspace(plan), overrides, "auto", observe)
