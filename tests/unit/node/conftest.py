"""A small federation in one process: a model of a few numbers, trained by adding constants."""

import asyncio
import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

from openfed.codec.packet import Head, packet_blocks
from openfed.codec.pipeline import Pipeline
from openfed.node.trainer import DirectTrainer
from openfed.plan.load import load_plan
from openfed.plan.lock import make_lock, write_lock
from openfed.simulate.inprocess import run_inprocess
from openfed.store.journal import Journal
from openfed.store.packets import PacketFile, open_packet
from openfed.tasks.base import Outcome
from openfed.tensors.frame import CHUNK, Held, digest, open_frame
from openfed.tensors.model_file import read_model, write_model
from openfed.tensors.record import DTYPES, Kind, Record, signature_of
from openfed.tensors.update import update_signature
from tests.unit.node.gate import ENROLLED, Gate

PLAN = """
federation: lab
name: toy
rounds: {rounds}
seed: 3
collaborators: {sites}
task_runner: {runner}
data_loader: "src.toy:Data"
metrics: [accuracy]
{more}
"""

RUNNER = '{numpy: {train: "src.toy:train", validate: "src.toy:train", shapes: {w: [3]}}}'

CODE = """
class Data:
    def __init__(self, source): ...
class Net: ...
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


def entry(packet: PacketFile, spec):
    flat = np.empty(spec.count, DTYPES[spec.dtype])
    for start in range(0, spec.count, CHUNK):
        packet.read(spec.name, start, flat[start : start + CHUNK])
    return flat.reshape(spec.shape)


class Lab:
    """One workspace on disk and what happened in it."""

    def __init__(
        self, root: Path, toys: dict, rounds=3, more="", model=MODEL, kinds=KINDS, sites="",
        runner=RUNNER,
    ):  # fmt: skip
        self.root, self.toys, self.events = root, toys, []
        (root / "plan").mkdir(parents=True)
        (root / "src").mkdir()
        (root / "src" / "toy.py").write_text(CODE)
        sites = sites or f"[{', '.join(sorted(toys))}]"
        text = PLAN.format(rounds=rounds, sites=sites, runner=runner, more=more)
        (root / "plan" / "plan.yaml").write_text(text)
        plan = load_plan(root / "plan" / "plan.yaml")
        signature = signature_of(model, kinds)
        self.lock = make_lock(plan, {}, digest(Record(model)), signature)
        write_lock(root / "plan" / "plan.lock", self.lock)
        write_model(root / "save" / "toy_init.safetensors", model)

    def emit(self, kind, fields):
        self.events.append({"event": kind, **fields})

    def run(self, run: str = "r1", wrap=None):
        wrap = wrap or (lambda trainer: trainer)

        async def main():
            trainers = {name: wrap(DirectTrainer(toy)) for name, toy in self.toys.items()}
            return await run_inprocess(self.root, self.lock, run, trainers, self.emit)

        return asyncio.run(main())

    @property
    def last(self):
        """The model that the run saved at its end."""
        return read_model(self.root / "save" / "toy_last.safetensors")

    @property
    def folder(self):
        return self.root / "runs" / "r1"

    def journal(self):
        return Journal(self.folder / "journal.sqlite")

    def blob(self, digest):
        """The tensors of a frame in the aggregator's spool."""
        with open_frame(self.folder / "blobs" / digest, limit=1 << 40) as frame:
            return frame.record().tensors

    def chains(self):
        return Pipeline(self.lock.plan.compression_pipeline.uplink).chains(
            update_signature(self.lock.signature)
        )

    def coded(self, tensors, numbers, base):
        """The packet of a reply as this plan has it coded."""
        names = (spec.name for spec in update_signature(self.lock.signature))
        chosen = dict(zip(names, self.chains(), strict=True))
        specs = signature_of(tensors)
        chains = tuple(chosen.get(spec.name, chosen["w"]) for spec in specs)
        head = Head(specs, chains, numbers, base, 0)
        return b"".join(bytes(block) for block in packet_blocks(head, Held(Record(tensors))))

    def opened(self, path):
        """(head, decoded tensors) of a packet that a site sent."""
        with open_packet(path, limit=1 << 40, allowed=self.chains()) as packet:
            return packet.head, {spec.name: entry(packet, spec) for spec in packet.specs}

    def updates(self):
        """round -> [(collaborator, head, decoded update), ...] of the packets that were kept."""
        journal, found = self.journal(), {}
        for row in journal.asks():
            if row.task == "train":
                replies = sorted(row.replies, key=lambda reply: reply.collaborator)
                found[row.round] = [
                    (
                        r.collaborator,
                        *self.opened(self.folder / "blobs" / f"{r.collaborator}.{r.digest}"),
                    )
                    for r in replies
                    if r.digest
                ]
        journal.close()
        return found

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


def keep(source, target):
    """Copy a file, unless another thread has just swept it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def points_of(here, wrap):
    """Run, and after every commit of the journal keep what is on the aggregator's disk."""
    kept = []
    commit = Journal.transaction

    @contextlib.contextmanager
    def watched(self):
        inner = self._db.in_transaction
        with commit(self):
            yield
        if not inner:
            with self._lock:
                copy = wrap / f"{len(kept):03d}"
                skip = shutil.ignore_patterns("agents", "growing")
                shutil.copytree(
                    here.root / "runs" / "r1", copy / "runs" / "r1", ignore=skip, copy_function=keep
                )
                kept.append(copy)

    Journal.transaction = watched
    try:
        here.run()
    finally:
        Journal.transaction = commit
    return kept


@pytest.fixture
def crash_points():
    """`crash_points(lab, folder)`: runs the lab; copies of its disk, one after every commit."""
    return points_of


@pytest.fixture
def gate(lab, tmp_path):
    def run(body):
        async def main():
            here = Gate(lab({"one": None, "two": None}, sites=ENROLLED), tmp_path)
            try:
                return await asyncio.wait_for(body(here), 30)
            finally:
                here.journal.close()

        return asyncio.run(main())

    return run
