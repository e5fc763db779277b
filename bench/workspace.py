"""Workspaces of the benchmarks: a plan whose training costs nothing, its sites, its code."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import task


def write(
    root: Path,
    names: Sequence[str],
    mb: int,
    rounds: int,
    pipeline: Mapping[str, Any] | None = None,
    strategy: str = "fedavg",
    content: str = "gaussian",
) -> None:
    """`pipeline`: the plan's compression_pipeline; with one, updates are gaussian noise."""
    settings = {"mb": mb, "noise": pipeline is not None, "content": content}
    plan: dict[str, Any] = {
        "federation": "bench",
        "rounds": rounds,
        "aggregator": {"listen": "127.0.0.1:0"},
        "collaborators": list(names),
        "task_runner": {
            "numpy": {"train": "src.task:train", "init": "src.task:init", "settings": settings}
        },
        "data_loader": "src.task:site",
        "tasks": ["train"],
        "strategy": strategy,
    }
    if pipeline is not None:
        plan["compression_pipeline"] = dict(pipeline)
    for folder in ("plan", "src"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    sites = {name: number for number, name in enumerate(names, 1)}
    (root / "plan" / "plan.yaml").write_text(json.dumps(plan))  # JSON is YAML
    (root / "local.yaml").write_text(json.dumps({"sites": sites}))
    (root / "src" / "__init__.py").touch()
    shutil.copyfile(task.__file__, root / "src" / "task.py")


def site_names(count: int) -> list[str]:
    return [f"site{number:02d}" for number in range(1, count + 1)]


def expected_move(count: int, rounds: int) -> float:
    """By how much each weight has moved: the mean of the sites' constants, every round."""
    return rounds * task.STEP * (count + 1) / 2
