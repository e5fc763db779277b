"""What a task process is told when it starts: `task.json`, written by the launcher."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.data.contract import Contract, contract_of
from openfed.tensors.record import Scope
from openfed.typing import Json


@dataclass(frozen=True)
class Choice:
    """A shipped name or `module:attribute`, and its settings."""

    name: str
    settings: Mapping[str, Any]


def choice(given: Mapping[str, Any]) -> Choice:
    """Read `{"name": "adam", "settings": {"lr": 1}}`, as a plan's canonical form has it."""
    return Choice(given["name"], given["settings"])


@dataclass(frozen=True)
class Config:
    """Of the plan: runner, loader, contract, metrics, scope, seed, rounds; the rest is the site's.

    No defaults here: those of a plan are in its canonical form, those of a site the launcher's.
    """

    workspace: Path
    collaborator: str
    runner: Choice
    data_loader: Choice
    strategy: Choice  # some have a half that runs here
    contract: Contract | None  # what the data have to be
    source: Json  # whatever the site says its data is; handed to the loader as it stands
    seed: int
    rounds: int
    metrics: tuple[str, ...]
    scope: Scope
    device: str  # as torch names it, or "auto"
    threads: int
    output_limit: int  # bytes a task may print


def read_config(path: Path) -> Config:
    """Raises: OSError, ValueError, KeyError, TypeError: the launcher wrote something else."""
    given = json.loads(path.read_text())
    demanded = given["data_contract"]
    return Config(
        workspace=Path(given["workspace"]),
        collaborator=given["collaborator"],
        runner=choice(given["runner"]),
        data_loader=choice(given["data_loader"]),
        strategy=choice(given["strategy"]),
        contract=None if demanded is None else contract_of(demanded),
        source=given["source"],
        seed=given["seed"],
        rounds=given["rounds"],
        metrics=tuple(given["metrics"]),
        scope=tuple((pattern, where) for pattern, where in given["scope"]),
        device=given["device"],
        threads=given["threads"],
        output_limit=given["output_limit"],
    )
