"""Real workspaces, real processes, real mTLS on loopback."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

TEMPLATES = Path(__file__).parents[2] / "workspace_templates"
FX = (sys.executable, "-m", "openfed")

LINE = '''"""y = slope * x + offset; `FAULT` and `go` are for tests."""
import os, signal, sys, time
from pathlib import Path
import numpy as np

class Points:
    def __init__(self, source):
        self.site = Path(source).stem
        x, y = np.loadtxt(source, delimiter=",", skiprows=1, unpack=True)
        self.train = (x, y)

def called(data):
    calls = Path(f"{data.site}.calls")
    before = calls.stat().st_size if calls.exists() else 0
    calls.write_text("x" * (before + 1))
    return before + 1

def train(record, data, settings):
    number = called(data)
    if number == 3 and data.site == "mill":
        while not Path("go").exists():
            time.sleep(0.01)
    x, y = data.train
    for _ in range(5):
        error = record["slope"] * x + record["offset"] - y
        record["slope"] -= 0.1 * np.mean(error * x)
        record["offset"] -= 0.1 * np.mean(error)
    if data.site == "mill" and (number == 2 or Path("doomed").exists()):
        record = FAULT(record)
    return record, len(x), {"loss": float(np.mean(error**2))}

def validate(record, data, settings):
    x, y = data.train
    errors = (record["slope"] * x + record["offset"] - y) ** 2
    return len(x), {"loss": float(errors.mean()), "rmse": (float(errors.sum()), float(len(x)))}

def FAULT(record):
    return record
'''

PLAN = """federation: line
rounds: 5
aggregator: {{listen: "127.0.0.1:{port}", advertise: [localhost]}}
collaborators: [mill, farm]
task_runner:
  numpy: {{train: "src.linear:train", validate: "src.linear:validate",
           shapes: {{slope: [], offset: []}}}}
metrics: [rmse]
data_loader: "src.linear:Points"
{more}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, what: str, seconds: float = 60.0):
    """Returns what `condition` gives once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.01)
    return found


class Workspace:
    """A workspace folder and the fx processes that tests start in it."""

    wait_until = staticmethod(wait_until)

    def __init__(self, root: Path):
        self.root, self.started = root, []

    def fx(self, *words, timeout=120, **settings) -> subprocess.CompletedProcess:
        return subprocess.run(
            [*FX, *words],
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=timeout,
            **settings,
        )

    def start(self, *words, **settings) -> subprocess.Popen:
        with open(self.root / f"out{len(self.started)}.txt", "wb") as out:
            settings = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out} | settings
            process = subprocess.Popen([*FX, *words], cwd=self.root, **settings)
        self.started.append(process)
        return process

    def said(self, process) -> str:
        return (self.root / f"out{self.started.index(process)}.txt").read_text(errors="replace")

    def hold(self, *words) -> subprocess.Popen:
        """Start a run of `workspace.line()`, and wait until it waits in round 3."""
        process = self.start(*words)
        self.wait_until(lambda: self.calls("mill") == 3, "round 3 at mill")
        return process

    def calls(self, site: str) -> int:
        path = self.root / f"{site}.calls"
        return path.stat().st_size if path.exists() else 0

    def go(self):
        (self.root / "go").touch()

    def manifest(self) -> dict:
        return json.loads((self.root / "save" / "manifest.json").read_text())

    def digest(self) -> str:
        return self.manifest()["models"]["last"]["digest"]

    def edit(self, old: str, new: str, file: str = "plan/plan.yaml"):
        text = (self.root / file).read_text()
        assert old in text
        (self.root / file).write_text(text.replace(old, new, 1))

    def events(self, kind: str) -> list[dict]:
        path = self.root / "logs" / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.endswith("}")]
        return [event for event in found if event["event"] == kind]

    def processes(self) -> dict[str, int]:
        """Pids of this workspace's nodes: aggregator, agent NAME, task NAME."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(self.root) not in " ".join(words) or "-m" not in words:
                continue
            if "openfed.launch.node" in words:
                agent = words[words.index("--name") + 1] if "--name" in words else ""
                found[f"agent {agent}" if agent else "aggregator"] = int(entry.name)
            elif "openfed.tasks.child" in words and "--exchange" in words:
                site = Path(words[words.index("--exchange") + 1]).name
                found[f"task {site}"] = int(entry.name)
        return found

    def close(self):
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self.processes().values():
            os.kill(pid, signal.SIGKILL)


def line(root: Path, fault: str = "", more: str = "") -> Workspace:
    """A workspace whose run waits in mill's third training until `go()`."""
    shutil.copytree(TEMPLATES / "numpy_linear", root)
    (root / "src" / "linear.py").write_text(LINE + fault)
    (root / "plan" / "plan.yaml").write_text(PLAN.format(port=free_port(), more=more))
    return Workspace(root)


def copy(source: Path, root: Path) -> Workspace:
    shutil.copytree(source, root)
    return Workspace(root)


@pytest.fixture
def workspace(tmp_path):
    """Makes workspaces: `workspace(template)`, `workspace.copy(root)`, `workspace.line(...)`."""
    made = []

    def add(make, *arguments, **options) -> Workspace:
        made.append(make(*arguments, tmp_path / f"w{len(made)}", **options))
        return made[-1]

    def template(name: str = "numpy_linear") -> Workspace:
        return add(copy, TEMPLATES / name)

    template.copy = partial(add, copy)
    template.line = partial(add, line)
    yield template
    for here in made:
        here.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A workspace in which numpy_linear ran once, and what `fx run --json` did there."""
    here = copy(TEMPLATES / "numpy_linear", tmp_path_factory.mktemp("trained") / "w")
    return here, here.fx("run", "--json")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> str:
    """The digest of the last model of `workspace.line()` when nothing happens to the run."""
    here = line(tmp_path_factory.mktemp("undisturbed") / "w")
    here.go()
    ran = here.fx("run")
    assert ran.returncode == 0, ran.stderr
    return here.digest()


@pytest.fixture(scope="session")
def two_sides(tmp_path_factory) -> Path:
    """Two folders, each up to `start`: see faults.py."""
    from tests.e2e.faults import make_two_sides

    return make_two_sides(tmp_path_factory.mktemp("two_sides"))


@pytest.fixture
def world(two_sides, tmp_path, monkeypatch):
    """Copies of the two folders, to be spoilt; and no proxy in the environment."""
    from tests.e2e.faults import World

    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    shutil.copytree(two_sides, tmp_path / "w")
    made = World(tmp_path / "w")
    yield made
    made.close()
