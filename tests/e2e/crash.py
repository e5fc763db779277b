"""A real federation of processes over mTLS whose nodes die at failpoints: every life of a node is
armed with the next one on its list, and dies there. `fx run` starts it again, as it would for a
person; where it gives up after the fourth death, it is typed again.
"""

import json
import re
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from openfed.errors import OpenFedError
from openfed.failpoints import VARIABLE
from openfed.launch.federation import run_federation
from openfed.launch.places import Host
from openfed.launch.processes import Exit, Kind, Process
from openfed.pki.authority import Enrolment
from openfed.pki.files import make_request
from openfed.pki.office import open_office
from openfed.pki.record import TRIAL
from openfed.store.runs import runs
from openfed.workspace import TEMPLATES, Workspace

DAY = 86400.0
SITES = ("farm", "mill")

CODE = '''"""y = slope * x + offset; three blocks of ballast; a bias that stays at the site."""
import os
import numpy as np

class Points:
    def __init__(self, source):
        self.site = os.path.basename(source).removesuffix(".csv")
        self.x, self.y = np.loadtxt(source, delimiter=",", skiprows=1, unpack=True)

def init(settings):
    names = {"slope": (), "offset": (), "wide": (2_200_000,), "own.bias": ()}
    return {name: np.zeros(shape, np.float32) for name, shape in names.items()}

def train(record, data, settings):
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


def make(root: Path, rounds=6, cohort="{deadline: 10m}", updates="none") -> Path:
    shutil.copytree(TEMPLATES / "numpy_linear", root)
    (root / "src" / "linear.py").write_text(CODE)
    plan = PLAN.format(rounds=rounds, cohort=cohort, updates=updates)
    (root / "plan" / "plan.yaml").write_text(plan)
    return root


class Deaths:
    """Launches child processes of this one; those on the list are armed.

    `left`: name of a node -> what its next lives die of, `point=kill@N`; `fired`: what they did.
    `noted`: points whose passages all nodes say in their logs. `aged`: points on the way of a
    renewal; whoever is armed with one gets a certificate that is due.
    """

    isolation = "process"

    def __init__(self, root: Path, left=None, noted=(), aged=frozenset()):
        self.root, self.left, self.noted, self.aged = root, left or {}, noted, aged
        self.fired, self.pids, self.nodes = [], {}, {}

    def start(self, spec, tell):
        waiting = self.left.get(spec.name, [])
        armed = waiting[0] if waiting else ""
        if (armed.partition("=")[0] or "all") in self.aged and spec.kind != Kind.TASK:
            age(Workspace(self.root).cert, spec.name)

        def heard(what):
            if isinstance(what, Exit) and what.code == -signal.SIGKILL and armed:
                waiting.remove(armed)
                self.fired.append((spec.name, armed))
            tell(what)

        told = [f"{point}=note" for point in self.noted if point != armed.partition("=")[0]]
        variable = f"{VARIABLE}={';'.join([*told, *filter(None, [armed])])}"
        process = self.nodes[spec.name] = Process(spec, heard, ("env", variable))
        self.pids[process.pid] = spec.name
        return process

    def passages(self) -> Counter:
        """(node, point) -> how often it was passed, of the points noted."""
        text = "".join(log.read_text() for log in (self.root / "logs").glob("*.log"))
        found = re.findall(r"failpoint (\S+) passed pid (\d+)", text)
        return Counter((self.pids[int(pid)], point) for point, pid in found)


def age(cert: Path, name: str) -> None:
    """A certificate of 20 days ago, which is due to be renewed at once."""
    node = open_office(cert).record().nodes[name]
    enrolment = Enrolment("crash", node.role, name, node.hosts)
    chain = open_office(cert).certify(make_request(cert, name), enrolment, time.time() - 20 * DAY, TRIAL)
    (cert / name / "chain.pem").write_bytes(chain)


def run(deaths: Deaths) -> list[dict]:
    """Run until the run has ended, and type `fx run` again where nodes have died too often.

    Returns: the events of the whole run.
    """

    @contextmanager
    def placed(workspace, local):
        yield Host(deaths)

    before = -1
    while True:
        try:
            run_federation(Workspace(deaths.root), (), "auto", lambda event: None, placed)
        except OpenFedError as error:
            assert error.code == "U21" and len(deaths.fired) > before, error
            before = len(deaths.fired)
            if runs(deaths.root)[-1].status == "running":
                continue
        return events(deaths.root)


def events(root: Path) -> list[dict]:
    lines = (root / "logs" / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def digest(root: Path) -> str:
    return json.loads((root / "save" / "manifest.json").read_text())["models"]["last"]["digest"]


def trained(root: Path, site: str) -> Counter:
    """Round -> how often its training came to its end at the site."""
    path = root / f"{site}.trained"
    return Counter(path.read_text().split()) if path.exists() else Counter()


def rounds(told: list[dict]) -> dict[int, str]:
    """Round -> digest of the model that it made, which is the same however often it is told."""
    found = {(each["round"], each["digest"]) for each in told if each["event"] == "round.ended"}
    assert len(found) == len(dict(found)), sorted(found)
    return dict(found)
