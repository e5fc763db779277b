"""What a task process is told when it starts: `task.json`, written by the launcher."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.tensors.record import Scope
from openfed.typing import Json


@dataclass(frozen=True)
class Choice:
    """A shipped name or `module:attribute`, and its settings."""

    name: str
    settings: Mapping[str, Any]


def choice(value: Any) -> Choice:
    """Read `"adam"`, `{"adam": {"lr": 1}}` or `{"name": "adam", "settings": {"lr": 1}}`.

    Raises: ValueError: anything else.
    """
    if isinstance(value, str):
        return Choice(value, {})
    if isinstance(value, Mapping):
        if set(value) == {"name", "settings"}:
            return Choice(str(value["name"]), value["settings"] or {})
        if len(value) == 1:
            ((name, settings),) = value.items()
            return Choice(str(name), settings or {})
    raise ValueError(f"expected a name or {{name: {{settings}}}}, got {value!r}")


@dataclass(frozen=True)
class Config:
    """The plan's part (runner, loader, metrics, scope, seed, rounds) and the site's (the rest)."""

    workspace: Path
    collaborator: str
    runner: Choice
    data_loader: Choice
    source: Json = None  # whatever the site says its data is; handed to the loader as it stands
    seed: int = 0
    rounds: int = 1
    metrics: tuple[str, ...] = ()
    scope: Scope = ()
    device: str = "auto"
    threads: int = 1
    output_limit: int = 16 << 20  # bytes a task may print


def read_config(path: Path) -> Config:
    """Raises: OSError, ValueError, KeyError: the launcher wrote something else."""
    given = json.loads(path.read_text())
    return Config(
        workspace=Path(given["workspace"]),
        collaborator=given["collaborator"],
        runner=choice(given["runner"]),
        data_loader=choice(given["data_loader"]),
        source=given.get("source"),
        seed=given["seed"],
        rounds=given["rounds"],
        metrics=tuple(given.get("metrics", ())),
        scope=tuple((pattern, where) for pattern, where in given.get("scope", ())),
        device=given.get("device", "auto"),
        threads=given.get("threads", 1),
        output_limit=given.get("output_limit", 16 << 20),
    )
