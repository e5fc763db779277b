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
    mb: float,
    rounds: int,
    pipeline: Mapping[str, Any] | None = None,
    strategy: str = "fedavg",
    content: str = "gaussian",
    scores: bool = False,
    retention: Any = "none",
) -> None:
    """`pipeline`: the plan's compression_pipeline; with one, updates are gaussian noise. `scores`:
    the sites validate, too; `retention`: of the updates."""
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
        "retention": {"updates": retention},
    }
    if scores:
        plan["tasks"] = ["validate", "train"]
        plan["task_runner"]["numpy"]["validate"] = "src.task:validate"
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
    digits = max(2, len(str(count)))
    return [f"site{number:0{digits}d}" for number in range(1, count + 1)]


def expected_move(count: int, rounds: int) -> float:
    """By how much each weight has moved: the mean of the sites' constants, every round."""
    return rounds * task.STEP * (count + 1) / 2
