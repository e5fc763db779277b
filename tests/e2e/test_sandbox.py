"""Hostile code in a sandbox: what it tries is refused, what it breaks is told, and nothing else
notices. The same attempts succeed without one, or they would prove nothing."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from openfed.errors import PolicyError
from openfed.launch import sandbox
from openfed.launch.initial import task_config
from openfed.launch.processes import Exit, Kind, NodeSpec, Processes
from openfed.launch.sandbox import Limits, launcher
from openfed.plan.load import load_plan
from openfed.workspace import Workspace
from tests.redteam.prey import MIB, Prey

pytestmark = pytest.mark.slow  # they need bubblewrap, which scripts/docker-engine installs

ATTACKS = Path(__file__).parents[1] / "redteam" / "attacks.py"
TEMPLATE = Path(__file__).parents[2] / "workspace_templates" / "numpy_linear"

REPORT = """
def hostile():
    import json
    from src import attacks
    print("ATTEMPTS", json.dumps(attacks.attempts(SKIP)), flush=True)
"""


# -- something to attack --------------------------------------------------------------------------


@pytest.fixture
def prey(tmp_path: Path) -> Iterator[Prey]:
    made = Prey(tmp_path)
    with made.closing:
        yield made


# -- one task process -----------------------------------------------------------------------------


class Site:
    """A workspace, and task processes in it that import `src.linear` and end."""

    def __init__(self, root: Path, code: str = "") -> None:
        shutil.copytree(TEMPLATE, root)
        self.root, self.workspace = root, Workspace(root)
        with (root / "src" / "linear.py").open("a") as file:
            file.write(code)
        for folder in ("cert/mill", "runs/agents/mill", "runs/home"):
            (root / folder).mkdir(parents=True)
        for secret in ("cert/mill/node.key", "runs/agents/mill/local", "site.yaml"):
            (root / secret).write_text("secret")
        self.source: Any = "data/mill.csv"
        self.limits = Limits(memory=512 * MIB, pids=64)
        self.log, self.exits = root / "logs" / "mill.log", queue.SimpleQueue[Any]()

    @property
    def secrets(self) -> list[str]:
        names = ["cert/mill/node.key", "runs/agents/mill/local", "site.yaml", "local.yaml"]
        inside = [str(self.root / name) for name in (*names, "data/farm.csv", "logs/mill.log")]
        private = self.root.parent / "private"
        private.write_text("not in the workspace")
        return [*inside, str(private), "/etc/shadow", "/etc/hostname", __file__]

    @property
    def spoils(self) -> list[str]:
        inside = ("src/linear.py", "plan/plan.yaml", "data/mill.csv", "new", "runs/home/new")
        return [*(str(self.root / name) for name in inside), "/usr/new", "/etc/passwd", "/new"]

    def spec(self, *more: str) -> NodeSpec:
        out = self.root / "runs" / "initial"
        out.mkdir(parents=True, exist_ok=True)
        plan = load_plan(self.workspace.plan)
        config = task_config(self.root, plan, "mill", self.source, "cpu", 1)
        (out / "task.json").write_text(json.dumps(config))
        words = ("--initial", str(out), "--config", str(out / "task.json"), *more)
        home = self.root / "runs" / "home" / "mill.task"
        return NodeSpec("mill.task", Kind.TASK, "openfed.tasks.child", words, home, self.log)

    def launcher(self, isolation: Any = "sandbox") -> Any:
        sites = {"mill": self.source}
        return launcher(self.workspace, sites, "cpu", isolation, self.limits)

    def start(self, isolation: Any = "sandbox") -> Any:
        return self.launcher(isolation).start(self.spec(), self.exits.put)

    def run(self, isolation: Any = "sandbox") -> int:
        node = self.start(isolation)
        ended = self.exits.get(timeout=60)
        node.wait(10)
        assert isinstance(ended, Exit)
        return ended.code

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def attempts(self) -> dict[str, str]:
        line = next(line for line in self.said.splitlines() if line.startswith("ATTEMPTS "))
        return json.loads(line.removeprefix("ATTEMPTS "))


def hostile(root: Path, prey: Prey, skip: tuple[str, ...] = ()) -> Site:
    site = Site(root, REPORT.replace("SKIP", repr(skip)) + "\nhostile()\n")
    shutil.copy(ATTACKS, site.root / "src" / "attacks.py")
    targets = prey.targets(secrets=site.secrets, spoils=site.spoils)
    (site.root / "src" / "targets.json").write_text(targets)
    return site


def done(found: dict[str, str]) -> dict[str, str]:
    return {name: how for name, how in found.items() if how.startswith("DONE")}


def test_everything_that_hostile_code_tries_is_refused(tmp_path: Path, prey: Prey) -> None:
    site = hostile(tmp_path / "w", prey)
    assert site.run() == 0, site.said
    found, groups = site.attempts(), sandbox.walls().groups
    allowed = set() if groups else {"memory piece by piece"}
    if os.getuid() == 0 and not groups:
        allowed |= {"forks"}  # `fx doctor` says so: U85
    assert set(done(found)) <= allowed, done(found)
    assert len(found) > 30
    assert prey.heard == []
    assert (site.root / "src" / "linear.py").read_text().endswith("hostile()\n")


def test_without_a_sandbox_the_same_attempts_succeed(tmp_path: Path, prey: Prey) -> None:
    costly = ("forks", "a terabyte", "memory piece by piece", "kernel settings", "mount", "dns")
    more = ("/usr/new", "/etc/passwd", "/new")
    site = hostile(tmp_path / "w", prey, (*costly, *(f"write {path}" for path in more)))
    assert site.run("process") == 0, site.said
    found = done(site.attempts())
    wanted = {"udp", "abstract socket", f"socket {prey.path}", "signal", "memory of others"}
    wanted |= {f"tcp {host}" for host, _ in prey.tcp} | {"larger limits", "list the workspace"}
    wanted |= {f"read {path}" for path in site.secrets[:7] if not path.endswith(".log")}
    wanted |= {f"write {site.root / name}" for name in ("src/linear.py", "data/mill.csv", "new")}
    assert wanted <= set(found), wanted - set(found)
    assert {"udp", "unix", "abstract", "127.0.0.1"} <= set(prey.heard)


def test_what_is_needed_is_there(tmp_path: Path) -> None:
    needed = """
import getpass, os, pathlib, tempfile, multiprocessing
site = pathlib.Path("data/mill.csv").read_text()
assert not pathlib.Path("data/farm.csv").exists()
assert sorted(os.listdir(".")) == ["data", "plan", "runs", "src"], os.listdir(".")
assert getpass.getuser() == "task"
assert pathlib.Path("/proc/self/oom_score_adj").read_text().strip() == "1000"
pathlib.Path.home().joinpath("cache").write_text("kept until it ends")
with tempfile.NamedTemporaryFile() as file:
    file.write(b"x")
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
print("ALL THERE")
"""
    site = Site(tmp_path / "w", needed)
    assert site.run() == 0, site.said
    assert "ALL THERE" in site.said
    assert not (site.root / "runs" / "home" / "mill.task" / "cache").exists()


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("import os; os._exit(7)", 7),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -11),
    ],
)
def test_how_it_ended_is_told_as_without_a_sandbox(tmp_path: Path, code: str, wanted: int) -> None:
    assert Site(tmp_path / "w", code).run() == wanted
    assert Site(tmp_path / "v", code).run("process") == wanted


WAITS = """
import os, pathlib, time
open(os.environ["HOME"] + "/../../initial/begun", "w").close()
if os.fork() == 0:
    os.setsid()
time.sleep(600)
"""


def inside(root: Path) -> list[int]:
    """Processes with something of this workspace on their command line, by any launcher."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and str(root).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def wait_until(condition: Any, seconds: float = 30.0) -> None:
    waiting = threading.Event()
    for _ in range(int(seconds * 50)):
        if condition():
            return
        waiting.wait(0.02)
    raise AssertionError("waited in vain")


def test_nothing_is_left_of_it_when_it_is_stopped_or_killed(tmp_path: Path) -> None:
    for how in ("stop", "kill"):
        site = Site(tmp_path / how, WAITS)
        node = site.start()
        wait_until((site.root / "runs" / "initial" / "begun").exists)
        assert len(inside(site.root)) >= 3
        node.stop() if how == "stop" else os.kill(node.pid, signal.SIGKILL)
        node.wait(10)
        wait_until(lambda root=site.root: not inside(root))


LAUNCHER = """
import sys
sys.path.insert(0, {tests!r})
import importlib.util
from pathlib import Path
found = importlib.util.spec_from_file_location("test_sandbox", {file!r})
module = importlib.util.module_from_spec(found)
found.loader.exec_module(module)
site = module.Site(Path({root!r}), module.WAITS)
site.start()
site.exits.get()
"""


def test_nothing_is_left_of_it_when_its_launcher_is_killed(tmp_path: Path) -> None:
    root = tmp_path / "w"
    code = LAUNCHER.format(tests=str(Path(__file__).parent), file=__file__, root=str(root))
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            wait_until((root / "runs" / "initial" / "begun").exists)
        finally:
            process.kill()
    wait_until(lambda: not inside(root))


# -- what a site may ask for ----------------------------------------------------------------------


@pytest.mark.parametrize("data", ["cert", "cert/mill", ".", "..", "/", "runs/agents", "site.yaml"])
def test_data_that_would_show_what_is_the_sites_own_is_refused(tmp_path: Path, data: str) -> None:
    site = Site(tmp_path / "w")
    site.source = {"folder": [data]}
    with pytest.raises(PolicyError, match="would show") as caught:
        site.launcher()
    assert caught.value.code == "R37"


def test_a_link_to_what_is_the_sites_own_is_no_way_around_that(tmp_path: Path) -> None:
    site = Site(tmp_path / "w")
    (site.root / "data" / "key").symlink_to(site.root / "cert" / "mill" / "node.key")
    site.source = "data/key"
    with pytest.raises(PolicyError, match="R37"):
        site.launcher()


def test_the_paths_of_a_source_are_those_that_exist(tmp_path: Path) -> None:
    site = Site(tmp_path / "w")
    source = {"table": "data/mill.csv", "of": [1, None, "data/*.csv", "label", "", "\0"]}
    root = site.root
    assert sandbox.data_paths(source, root) == (root / "data" / "mill.csv", root / "data")


def test_a_level_that_cannot_be_had_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(tmp_path / "w")
    with pytest.raises(PolicyError, match="a sandbox at most") as caught:
        site.launcher("container")
    assert caught.value.code == "R36"
    broken = tmp_path / "bin"
    broken.mkdir()
    monkeypatch.setenv("PATH", str(broken))
    with pytest.raises(PolicyError, match="no program bwrap"):
        site.launcher()
    (broken / "bwrap").write_text("#!/bin/sh\necho 'setting up uid map: no' >&2\nexit 1\n")
    (broken / "bwrap").chmod(0o755)
    with pytest.raises(PolicyError, match="bwrap says: setting up uid map: no"):
        site.launcher()
    assert isinstance(site.launcher("process"), Processes)


# -- whole runs -----------------------------------------------------------------------------------


def sandboxed(here: Any) -> None:
    with (here.root / "local.yaml").open("a") as file:
        file.write("\nisolation: sandbox\n")


@pytest.mark.slow
def test_a_hostile_run_goes_on_and_its_model_is_that_of_processes(
    workspace: Any, trained: Any, prey: Prey
) -> None:
    here = workspace("numpy_linear")
    sandboxed(here)
    code = REPORT.replace("SKIP", "()") + "\nown_train = train\nasked = []\n"
    code += "def train(*given):\n    asked or hostile()\n    asked.append(1)\n"
    code += "    return own_train(*given)\n"
    with (here.root / "src" / "linear.py").open("a") as file:
        file.write(code)
    shutil.copy(ATTACKS, here.root / "src" / "attacks.py")
    names = ("cert/mill/node.key", "cert/authority", "local.yaml", "logs/events.jsonl")
    secrets = [str(here.root / name) for name in names]
    spoils = [str(here.root / "src" / "linear.py"), str(here.root / "new")]
    targets = prey.targets(secrets=secrets, spoils=spoils, memory=16 * MIB)
    (here.root / "src" / "targets.json").write_text(targets)
    ran = here.fx("run")
    assert ran.returncode == 0, ran.stderr
    assert here.digest() == trained[0].digest()
    for site in ("mill", "farm"):
        said = (here.root / "logs" / f"{site}.log").read_text()
        line = next(line for line in said.splitlines() if line.startswith("ATTEMPTS "))
        found = json.loads(line.removeprefix("ATTEMPTS "))
        allowed = {"memory piece by piece"}  # 16 MiB are within what is allowed
        assert any("in/model" in name for name in found)
        assert set(done(found)) <= allowed, done(found)
    assert prey.heard == []
    told = here.fx("status").stdout
    assert f"mill: up {told.partition('mill: up ')[2].splitlines()[0]}" in told
    assert told.count("sandbox (bubblewrap") == 2
    held = json.loads(here.fx("status", "--json").stdout)["isolation"]
    assert set(held) == {"mill", "farm"} and held["mill"].startswith("sandbox (")
    found = here.fx("doctor").stdout
    assert "PASS  isolation of mill: sandbox (bubblewrap" in found


SPOILED = {
    "a link to a secret": ("os.unlink(path); os.symlink(SECRET, path)", "K28"),
    "a fifo": ("os.unlink(path); os.mkfifo(path)", "K28"),
    "cut short": ("os.truncate(path, 100)", "K28"),
    "grown": ("open(path, 'ab').write(bytes(1 << 20))", "K28"),
    "other bytes": ("open(path, 'r+b').write(b'x' * 64)", "K28"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("how", "wanted"), SPOILED.values(), ids=list(SPOILED))
def test_what_it_does_to_its_answer_is_a_typed_error_and_the_agent_lives(
    workspace: Any, how: str, wanted: str
) -> None:
    here = workspace("numpy_linear")
    sandboxed(here)
    code = f"""
import os
from openfed.tasks import child
own_write, SECRET = child.write_frame, {str(here.root / "cert" / "mill" / "node.key")!r}
def write(path, record):
    own_write(path, record)
    {how}
child.write_frame = write if "mill" in str(child.sys.argv) else own_write
"""
    with (here.root / "src" / "linear.py").open("a") as file:
        file.write(code)
    ran = here.fx("run", "-s", "rounds=2")
    assert ran.returncode == 5, ran.stderr
    failed = here.events("task.failed")
    assert {(each["collaborator"], each["code"]) for each in failed} == {("mill", wanted)}
    assert "BEGIN" not in (here.root / "logs" / "mill.log").read_text()
    assert not here.processes()
