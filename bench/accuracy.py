"""`scripts/bench accuracy`: what compression costs in accuracy, and what it saves of all bytes.

Every run is a real one: its processes, mTLS, a loopback device of its own whose counter tells all
bytes of TCP and IP: handshakes, control messages, the first model whole, the last one exact. A run
with a pipeline is compared with the run of the same plan and seed without one: what is lost is
accuracy of the model of record after the last round, in points (hundredths).
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import yaml

from bench import report
from bench.meter import MIB, alone_on_the_network, loopback_bytes
from openfed.codec.base import CHUNK, Draw
from openfed.codec.pipeline import Pipeline
from openfed.launch.federation import run_federation
from openfed.plan.load import load_plan, ready_plans
from openfed.tensors.record import Kind, Spec
from openfed.workspace import TEMPLATES, open_workspace

NONE = "none"
PIPELINES = {"8x": "compressed_8x", "30x": "compressed_30x"}
"""Short name -> the ready plan, as in `extends`, whose pipeline it is."""


@dataclass(frozen=True)
class Task:
    """A plan that converges: a workspace, what is overridden in it, and what is asked of it."""

    workspace: Path
    settings: tuple[str, ...] = ()
    wanted: Mapping[str, tuple[float, float]] | None = None  # pipeline -> times fewer, points lost


TASKS = {
    "digits": Task(
        TEMPLATES / "torch_digits",
        (
            "rounds=50",
            "task_runner.torch.model={'src.model:Net': {width: 64}}",
            "task_runner.torch.epochs=1",
            "task_runner.torch.scheduler=cosine",
            "validation.every=10",
        ),
        {"8x": (8, 0.5)},
    ),
    "large": Task(Path(__file__).parent / "accuracy_task", (), {"8x": (8, 0.5), "30x": (30, 1.5)}),
}
QUICK = ("rounds=5", "task_runner.torch.model={'src.model:Net': {width: 64}}")

T_975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365}
"""Student's t of 97.5%, by the number of values that a mean is of."""

OPENFL = (
    ("STC, p = 0.1", 30.5, 0.959, "sends values p times too small: training stays at chance"),
    ("SKC, p = 0.1, k = 6", 26.7, 0.751, ""),
    ("KC, k = 6", 8.5, 0.241, ""),
    ("EDEN 8 bit", 3.8, 0.0063, ""),
    ("EDEN 4 bit", 7.6, 0.096, ""),
    ("EDEN 1 bit", 30.5, 0.741, ""),
)
"""Pipelines of OpenFL 1.9 on 10 million gaussian float32, measured 2026-11-21: name, times fewer
bytes, relative L2 error, remark. By default its plans compress nothing on the wire."""


def main(arguments: list[str]) -> None:
    given = _parser().parse_args(arguments)
    if given.one:
        print(json.dumps(run(**json.loads(given.one))))
        return
    tasks = {name: TASKS[name] for name in given.tasks}
    if given.quick:
        tasks = {"digits": Task(TEMPLATES / "torch_digits", QUICK)}
        given.seeds, given.pipelines = [0, 1], ["8x"]
    rows, runs = [], []
    for name, task in tasks.items():
        pipelines = [each for each in given.pipelines if task.wanted is None or each in task.wanted]
        found = {each: runs_of(name, task, each, given.seeds) for each in (NONE, *pipelines)}
        rows += [row(name, task, each, found[NONE], found[each]) for each in pipelines]
        runs += [{"task": name, "pipeline": each, "runs": found[each]} for each in found]
    report.table("All bytes of a run, and accuracy at equal rounds and seeds", rows)
    updates = [*map(of_an_update, given.pipelines), *map(peer, OPENFL)]
    report.table("One update of gaussian float32", updates)
    pipelines = {name: override(name) for name in PIPELINES}
    results = {"pipelines": pipelines, "table": rows, "updates": updates, "runs": runs}
    report.save("accuracy", results, given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench accuracy", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS])
    parser.add_argument("--pipelines", nargs="+", choices=PIPELINES, default=[*PIPELINES])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(8)])
    parser.add_argument("--quick", action="store_true", help="two seeds of a few rounds of digits")
    parser.add_argument("--out", help="the JSON file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser


# -- runs ------------------------------------------------------------------------------------------


def runs_of(name: str, task: Task, pipeline: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    found = []
    for seed in seeds:
        found.append(apart(task, pipeline, seed))
        told = {"task": name, "pipeline": pipeline, **found[-1]}
        print(json.dumps(told), file=sys.stderr, flush=True)
    return found


def override(pipeline: str) -> list[str]:
    """The ready plan's pipeline as `key=value`; nothing for none."""
    if pipeline == NONE:
        return []
    fragment = yaml.safe_load(ready_plans()[PIPELINES[pipeline]].read_text())
    return [f"compression_pipeline={json.dumps(fragment['compression_pipeline'])}"]


def apart(task: Task, pipeline: str, seed: int) -> dict[str, Any]:
    """What `run` finds, in a new process with a network of its own."""
    settings = [*task.settings, f"seed={seed}", *override(pipeline)]
    about = json.dumps({"workspace": str(task.workspace), "settings": settings})
    command = [sys.executable, "-m", "bench", "accuracy", "--one", about]
    done = subprocess.run(command, stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"a run ended with code {done.returncode}: {about}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"seed": seed, **found}


def run(workspace: str, settings: Sequence[str]) -> dict[str, Any]:
    """Run a copy of the workspace: accuracy after the last round, and bytes.

    `wire`: of TCP and IP, None where that can't be counted (it takes root). `moved`: of models and
    updates, as the aggregator counts them. `seconds`: of the run.
    """
    counted = alone_on_the_network()
    with tempfile.TemporaryDirectory(prefix="openfed-accuracy-") as folder:
        root = Path(folder) / "w"
        shutil.copytree(workspace, root, ignore=shutil.ignore_patterns("__pycache__"))
        told = run_federation(open_workspace(root), settings, "auto", lambda event: None).json
    if told["status"] != "completed":
        raise SystemExit(f"openfed: {told}")
    return {
        "accuracy": told["metrics"]["accuracy"],
        "wire": loopback_bytes() if counted else None,
        "moved": told["bytes"]["up"] + told["bytes"]["down"],
        "seconds": told["seconds"]["total"],
    }


# -- tables ----------------------------------------------------------------------------------------


def row(
    name: str, task: Task, pipeline: str, base: list[dict[str, Any]], coded: list[dict[str, Any]]
) -> dict[str, Any]:
    """One line of the table, from runs of the same seeds in the same order."""
    losses = [
        100 * (whole["accuracy"] - less["accuracy"])
        for whole, less in zip(base, coded, strict=True)
    ]
    what = "wire" if base[0]["wire"] else "moved"
    bytes_before, bytes_now = (mean(found[what] for found in runs) for runs in (base, coded))
    fewer, most = (task.wanted or {}).get(pipeline, (None, None))
    return {
        "task": name,
        "pipeline": pipeline,
        f"{what} MB": bytes_now / MIB,
        "float32 MB": bytes_before / MIB,
        "times fewer": bytes_before / bytes_now,
        "wanted": fewer,
        "float32 accuracy": mean(found["accuracy"] for found in base),
        "accuracy": mean(found["accuracy"] for found in coded),
        "points lost": mean(losses),
        "+-": half_width(losses),
        "at most": most,
    }


def half_width(values: Sequence[float]) -> float | None:
    """Of the 95% interval around the mean of normally distributed values."""
    if (t := T_975.get(len(values))) is None:
        return None
    return t * stdev(values) / math.sqrt(len(values))


def of_an_update(pipeline: str) -> dict[str, Any]:
    """What the way up makes of an update of a million normally distributed numbers."""
    plan = load_plan(TASKS["large"].workspace / "plan" / "plan.yaml", override(pipeline))
    spec = Spec("x", "float32", (16 * CHUNK,), Kind.PARAMETER)
    chain = Pipeline(plan.compression_pipeline.uplink).chain(spec)
    values = np.random.default_rng(0).standard_normal((16, CHUNK)).astype(np.float32)
    back, size = np.empty_like(values), 0
    for index, chunk in enumerate(values):
        coded = chain.encode(chunk, Draw(0, 0, index))
        chain.decode(coded, back[index], Draw(0, 0, index))
        size += len(coded)
    error = float(np.linalg.norm(back - values) / np.linalg.norm(values))
    ratio = values.nbytes / size
    return {"pipeline": f"openfed {pipeline}", "times fewer": ratio, "error": error, "remark": ""}


def peer(measured: tuple[str, float, float, str]) -> dict[str, Any]:
    name, ratio, error, remark = measured
    return {"pipeline": f"OpenFL {name}", "times fewer": ratio, "error": error, "remark": remark}
