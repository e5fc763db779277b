"""A small federation in one process: a model of a few numbers, trained by adding constants."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from openfed.node.trainer import DirectTrainer
from openfed.plan.load import load_plan
from openfed.plan.lock import make_lock, write_lock
from openfed.simulate.inprocess import run_inprocess
from openfed.tasks.base import Outcome
from openfed.tensors.frame import digest
from openfed.tensors.model_file import write_model
from openfed.tensors.record import Kind, Record, signature_of

PLAN = """
federation: lab
name: toy
rounds: {rounds}
seed: 3
collaborators: [{names}]
task_runner: {{numpy: {{train: "src.toy:train", validate: "src.toy:train", shapes: {{w: [3]}}}}}}
data_loader: "src.toy:Data"
metrics: [accuracy]
{more}
"""

CODE = """
class Data:
    def __init__(self, source): ...
def train(record, data, settings): ...
"""

MODEL = {
    "bn.count": np.array(0, np.int64),
    "bn.mean": np.zeros(2, np.float32),
    "fixed": np.float32([7, 8]),
    "w": np.float32([1, 2, 3]),
}
KINDS = {
    "bn.count": Kind.BUFFER,
    "bn.mean": Kind.BUFFER,
    "fixed": Kind.FROZEN,
    "w": Kind.PARAMETER,
}


class Toy:
    """A collaborator that adds `step * round` to all it may, and scores `correct` of `n`."""

    def __init__(self, step: float, n: int, *, correct: float | None = None, breaks=None):
        self.step, self.n, self.breaks = step, n, breaks
        self.correct = n / 2 if correct is None else correct
        self.seen = []

    def __call__(self, task, model, local):
        self.seen.append((task.name, task.round, task.seed, sorted(local)))
        assert model["fixed"].tolist() == [7, 8]
        if self.breaks:
            self.breaks(self, task)
        about = {"n": (float(self.n),), "seconds": (0.25,), "import_seconds": (1.0,)}
        if task.name == "validate":
            scores = {"metrics/validate/accuracy": (self.correct, float(self.n))}
            return Outcome({**about, **scores, "metrics/validate/loss": (float(self.n), self.n)})
        by = np.float32(self.step * task.round)
        trained = {
            "bn.count": model["bn.count"] + task.round * self.n,
            "bn.mean": model["bn.mean"] + by,
            "w": model["w"] + by * np.float32([1, -1, 0.1]),
        }
        seen = np.asarray(local.get("seen", np.zeros(1)) + 1)
        return Outcome({**about, "metrics/train/loss": (1.0, 1.0)}, trained, {"seen": seen})


class Lab:
    """One workspace on disk and what happened in it."""

    def __init__(self, root: Path, toys: dict, rounds: int = 3, more: str = ""):
        self.root, self.toys, self.events = root, toys, []
        (root / "plan").mkdir(parents=True)
        (root / "src").mkdir()
        (root / "src" / "toy.py").write_text(CODE)
        text = PLAN.format(rounds=rounds, names=", ".join(sorted(toys)), more=more)
        (root / "plan" / "plan.yaml").write_text(text)
        plan = load_plan(root / "plan" / "plan.yaml")
        signature = signature_of(MODEL, KINDS)
        self.lock = make_lock(plan, {}, digest(Record(MODEL)), signature)
        write_lock(root / "plan" / "plan.lock", self.lock)
        write_model(root / "save" / "toy_init.safetensors", MODEL)

    def emit(self, kind, fields):
        self.events.append({"event": kind, **fields})

    def run(self, run: str = "r1", wrap=None):
        wrap = wrap or (lambda trainer: trainer)

        async def main():
            trainers = {name: wrap(DirectTrainer(toy)) for name, toy in self.toys.items()}
            return await run_inprocess(self.root, self.lock, run, trainers, self.emit)

        return asyncio.run(main())

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]


@pytest.fixture
def lab(tmp_path):
    """Makes labs: `lab({"one": Toy(...), ...}, rounds=3, more="...")`."""
    made = []

    def make(toys, **settings):
        made.append(Lab(tmp_path / f"lab{len(made)}", toys, **settings))
        return made[-1]

    make.toy = Toy
    return make
