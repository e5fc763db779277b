"""A real federation of processes over mTLS whose nodes die at failpoints: every life of a node is
armed with the next one on its list, and dies there. `fx run` starts it again, as it would for a
person; where it gives up after the fourth death, it is typed again.
"""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import time
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from openfed.assemble import make_flow
from openfed.errors import OpenFedError
from openfed.failpoints import VARIABLE
from openfed.flow.federation import Federation
from openfed.launch.federation import run_federation
from openfed.launch.node import load_lock
from openfed.launch.places import Host
from openfed.launch.processes import Exit, Kind, Process
from openfed.node.conduct import read_initial
from openfed.parse import split_address
from openfed.pki.authority import Enrolment
from openfed.pki.files import make_request
from openfed.pki.office import open_office
from openfed.pki.record import TRIAL
from openfed.store.journal import Journal
from openfed.store.runs import JOURNAL, run_folder, runs
from openfed.store.spool import Spool
from openfed.tensors.frame import digest as digest_of
from openfed.tensors.record import Record
from openfed.workspace import TEMPLATES, Workspace

DAY = 86400.0
SITES = ("farm", "mill")
BLOCKS = 3
"""Of an update on its way."""

CODE = '''"""y = slope * x + offset; three blocks of ballast; a bias that stays at the site."""
import os, time
import numpy as np

class Points:
    def __init__(self, source):
        self.site = os.path.basename(source).removesuffix(".csv")
        self.x, self.y = np.loadtxt(source, delimiter=",", skiprows=1, unpack=True)

def init(settings):
    names = {"slope": (), "offset": (), "wide": (2_200_000,), "own.bias": ()}
    return {name: np.zeros(shape, np.float32) for name, shape in names.items()}

def train(record, data, settings):
    while os.path.exists(f"{data.site}.late.{settings['round']}"):
        time.sleep(0.01)
    for _ in range(5):
        error = record["slope"] * data.x + record["offset"] + record["own.bias"] - data.y
        record["slope"] -= np.float32(0.02 * np.mean(error * data.x))
        record["offset"] -= np.float32(0.02 * np.mean(error))
        record["own.bias"] -= np.float32(0.05 * np.mean(error))
    record["wide"] += record["slope"] * np.linspace(0, 1, record["wide"].size, dtype=np.float32)
    with open(f"{data.site}.trained", "a") as file:
        file.write(f"{settings['round']}\\n")
    return record, len(data.x), {}

def validate(record, data, settings):
    error = record["slope"] * data.x + record["offset"] - data.y
    return len(data.x), {"loss": float(np.mean(error**2))}
'''

PLAN = """federation: crash
rounds: {rounds}
aggregator: {{listen: "127.0.0.1:0", advertise: [localhost]}}
collaborators: [mill, farm]
cohort: {cohort}
retention: {{updates: {updates}}}
scope: [{{"own.*": local}}]
task_runner:
  numpy: {{train: "src.linear:train", validate: "src.linear:validate", init: "src.linear:init"}}
data_loader: "src.linear:Points"
compression_pipeline:
  uplink: {{codecs: [fp16], feedback: true}}
  downlink: [fp16]
"""
"""Every kind of state that a crash could lose or double: the model, what the sites have decoded of
it, what compression has not sent yet, a site's own entry."""


def make(root: Path, *, rounds=6, cohort="{deadline: 10m}", updates="none") -> Path:
    shutil.copytree(TEMPLATES / "numpy_linear", root)
    (root / "src" / "linear.py").write_text(CODE)
    plan = PLAN.format(rounds=rounds, cohort=cohort, updates=updates)
    (root / "plan" / "plan.yaml").write_text(plan)
    return root


# -- what dies where -------------------------------------------------------------------------------

AGGREGATOR, AGENT, TASK = "aggregator", "mill", "mill.task"


def _cases(*points: str, passages: tuple[int, ...] = (1, 2)) -> dict[str, tuple[int, ...]]:
    return dict.fromkeys(points, passages)


_BLOCKS, _SPOOL = (
    (1, 5),
    _cases("spool.written", "spool.synced", "spool.renamed", "spool.settled", "spool.swept"),
)
_FILE = _cases("file.written", "file.synced", "file.renamed", "file.durable")
_CERTIFICATE = _cases("certificate.leaf", "certificate.chain", passages=(1,))

CASES: dict[str, dict[str, tuple[int, ...]]] = {
    AGGREGATOR: {
        **_cases("journal.facts", "journal.note", "journal.ask", "journal.elapsed"),
        **_cases("journal.reply", "journal.close", "journal.turn", "journal.commit"),
        **_cases(
            "journal.entry", "journal.committed", "push.offset", "push.verdict", "call.answer"
        ),
        **_cases("spool.block", "pull.block", passages=_BLOCKS),
        **_SPOOL,
        **_CERTIFICATE,
        **_cases("record.written", "record.synced", passages=(1,)),
        **_FILE,  # the models: last, best
        **_cases("run.saved", "run.ended", passages=(1,)),
    },
    AGENT: {
        **_cases("local.owe", "local.owed", "local.settle", "local.ruled", "local.settled"),
        **_cases("witness.receipt", "witness.kept"),
        **_cases("spool.block", "spool.flushed", "push.block", passages=_BLOCKS),
        **_cases("exchange.linked", "task.asked", "task.heard"),
        **_SPOOL,
        **_CERTIFICATE,
        **_FILE,  # of a certificate
    },
    TASK: _cases(
        *("task.taken", "task.ran", "task.written", "task.answered"),
        passages=(2, 4),  # at the first, the task that was killed is done again, for the last time
    ),
}
"""Who passes a point -> the passages of one life at which it dies there. The end of a run last."""

RENEWING = frozenset(
    {
        *((AGGREGATOR, point) for point in (*_CERTIFICATE, "record.written", "record.synced")),
        *((AGENT, point) for point in (*_CERTIFICATE, *_FILE)),
    }
)
"""What is passed only while a certificate is renewed."""

LOSING = frozenset(
    {
        *((AGENT, point) for point in ("task.heard", *_SPOOL, "spool.flushed", "push.block")),
        (AGENT, "local.owe"),
        *((TASK, point) for point in ("task.ran", "task.written", "task.answered")),
    }
)
"""Where a finished training can be lost: the agent had not committed it."""


class Deaths:
    """Launches child processes of this one; those on the list are armed.

    `left`: name of a node -> what its next lives die of, `point=kill@N`; `fired`: what they did.
    `noted`: points whose passages all nodes say in their logs. `due`: every certificate is due to
    be renewed, and not only those of nodes that are to die of it.
    """

    isolation = "process"

    def __init__(self, root: Path, left=None, noted=(), *, due=False):
        self.root, self.left, self.noted, self.due = root, left or {}, noted, due
        self.fired: list[tuple[str, str]] = []
        self.pids, self.handles = {}, {}

    def start(self, spec, tell):
        waiting = self.left.get(spec.name, [])
        armed = waiting[0] if waiting else ""
        point = armed.partition("=")[0]
        if (self.due and spec.kind != Kind.TASK) or (spec.name, point) in RENEWING:
            make_due(Workspace(self.root).cert, spec.name)
            if spec.kind == Kind.AGENT:
                await_port(spec.option("--address"))

        def heard(what):
            said = f"failpoint {point} killed pid {process.pid} "
            if isinstance(what, Exit) and armed and said in spec.log.read_text():
                waiting.remove(armed)
                self.fired.append((spec.name, point))
            tell(what)

        told = [f"{each}=note" for each in self.noted if each != point]
        variable = f"{VARIABLE}={';'.join([*told, *filter(None, [armed])])}"
        process = Process(spec, heard, ("env", variable))
        self.pids[process.pid] = spec.name
        with suppress(KeyError):
            os.close(self.handles.pop(spec.name))
        self.handles[spec.name] = os.pidfd_open(process.pid)
        return process

    def strike(self, name: str) -> bool:
        """Kill a node now; false where it has ended, or was never started."""
        try:
            signal.pidfd_send_signal(self.handles[name], signal.SIGKILL)
        except (KeyError, ProcessLookupError):
            return False
        self.fired.append((name, ""))
        return True

    def passages(self) -> Counter:
        """(node, point) -> how often it was passed in the latest run, of the points noted."""
        text = "".join(log.read_text() for log in (self.root / "logs").glob("*.log"))
        found = re.findall(r"failpoint (\S+) passed pid (\d+)", text)
        return Counter((self.pids[int(pid)], point) for point, pid in found)


def make_due(cert: Path, name: str) -> None:
    """Give a node a certificate of 20 days ago: it is to be renewed at once."""
    office = open_office(cert)
    node = office.record().nodes[name]
    enrolment = Enrolment("crash", node.role, name, node.hosts)
    then = time.time() - 20 * DAY
    (cert / name / "chain.pem").write_bytes(
        office.certify(make_request(cert, name), enrolment, then, TRIAL)
    )


def await_port(address: str) -> None:
    """Until somebody listens there: a renewal that finds nobody is not tried again for minutes."""
    end = time.monotonic() + 60
    while True:
        with socket.socket() as probe:
            if not probe.connect_ex(split_address(address)):
                return
        assert time.monotonic() < end, f"nobody listens at {address}"
        time.sleep(0.02)


def run(deaths: Deaths) -> int:
    """Run until the run has ended. Returns: how often `fx run` had to be typed."""

    @contextmanager
    def placed(workspace, local):
        yield Host(deaths)

    typed, before = 0, -1
    while True:
        typed += 1
        try:
            run_federation(Workspace(deaths.root), (), "auto", lambda event: None, placed)
        except OpenFedError as error:
            assert error.code == "U21" and len(deaths.fired) > before, error
            before = len(deaths.fired)
            if runs(deaths.root)[-1].status == "running":
                continue
        return typed


# -- what came of it -------------------------------------------------------------------------------


def events(root: Path, kind: str) -> list[dict]:
    lines = (root / "logs" / "events.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines if line.endswith("}")]
    return [event for event in told if event["event"] == kind]


def rounds(root: Path) -> dict[int, str]:
    """Round -> digest of the model that it made, which is the same however often it is told."""
    found = {(each["round"], each["digest"]) for each in events(root, "round.ended")}
    assert len(found) == len(dict(found)), sorted(found)
    return dict(found)


def digest(root: Path) -> str:
    return json.loads((root / "save" / "manifest.json").read_text())["models"]["last"]["digest"]


def trained(root: Path, site: str) -> Counter:
    """Round -> how often its training came to its end at the site."""
    path = root / f"{site}.trained"
    return Counter(map(int, path.read_text().split())) if path.exists() else Counter()


def forget_trained(root: Path) -> None:
    for site in SITES:
        with suppress(FileNotFoundError):
            os.unlink(root / f"{site}.trained")


class Nobody:
    """Answers no flow: all that it asks must be in the journal."""

    def open(self, ask, assignment, entries):
        raise AssertionError(f"the journal lacks {assignment.task} of round {assignment.round}")

    wait = present = open


def replayed(root: Path, at: Path) -> str:
    """Digest of the model that the flow makes from its beginning, of a copy of the latest run's
    journal and spool, where nobody can be asked."""
    shutil.copytree(run_folder(root, runs(root)[-1].id), at)
    with sqlite3.connect(at / JOURNAL) as db:
        db.execute("delete from turns")
    db.close()
    lock, journal = load_lock(root), Journal(at / JOURNAL)
    initial = partial(read_initial, root / "save", lock)
    handle = Federation(lock, Nobody(), journal, Spool(at), lambda *_: None, time.time, initial)
    try:
        return digest_of(Record(make_flow(lock)(handle)))
    finally:
        journal.close()
