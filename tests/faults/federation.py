"""A federation of real processes, one aggregator and three sites, each in a folder of its own.

`prepare` makes a workspace whose run nobody disturbs; `lay_out` copies it for every node. Then
`Federation` is the operator of every site: it starts each node, and starts it again when it ends
before the run has.
"""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults import task
from tests.faults.check import ENDED
from tests.faults.schedule import SITES

FX = (sys.executable, "-m", "openfed")
CHECKOUT = Path(__file__).parents[2]
CLOCK = Path(__file__).with_name("clock") / "sitecustomize.py"
AGAIN_S = 0.3
"""How long an operator takes to start a node again."""

OF_A_RUN = shutil.ignore_patterns("runs", "logs")

COHORTS = {
    "whole": "cohort: {}",  # every site must answer
    "quorum": "cohort: {quorum: 2, deadline: 20s}",
    "late": "cohort: {quorum: 2, grace: 1s, deadline: 20s, late: next_round}",
}


@dataclass(frozen=True)
class Prepared:
    """A workspace with everything but a run. `digest`: of the model of its undisturbed run."""

    root: Path
    digest: str


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def prepare(
    root: Path,
    cohort: str,
    port: int,
    rounds: int,
    hosts: Sequence[str] = (),
    weights: int = 20_000,
) -> Prepared:
    """Run a workspace once, undisturbed. `hosts`: what sites dial beside localhost; `weights`: how
    many float32 the model has."""
    for folder in ("plan", "src"):
        (root / folder).mkdir(parents=True)
    plan = {
        "federation": "faults",
        "rounds": rounds,
        "aggregator": {
            "listen": f"127.0.0.1:{port}",
            "advertise": list(dict.fromkeys(("localhost", *hosts))),
        },
        "collaborators": list(SITES),
        "task_runner": {
            "numpy": {
                **{name: f"src.task:{name}" for name in ("train", "validate", "init")},
                "settings": {"every": 0.05, "weights": weights},
            }
        },
        "data_loader": "src.task:site",
        "retention": {"updates": "all"},
    }
    text = json.dumps(plan, indent=1)[1:-2]  # JSON is YAML, within braces
    (root / "plan" / "plan.yaml").write_text(f"{{{text},\n {COHORTS[cohort]}\n}}\n")
    sites = {name: number for number, name in enumerate(SITES, 1)}
    (root / "local.yaml").write_text(json.dumps({"sites": sites}))
    shutil.copyfile(task.__file__, root / "src" / "task.py")
    done = subprocess.run(
        [*FX, "run"], cwd=root, env=_environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(f"the undisturbed run failed: {done.stdout}{done.stderr}")
    manifest = json.loads((root / "save" / "manifest.json").read_text())
    return Prepared(root, manifest["models"]["last"]["digest"])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(CHECKOUT)}


def lay_out(prepared: Prepared, folders: Mapping[str, Path], addresses: Mapping[str, str]) -> None:
    """Every node's workspace, in folders that are there; a site's is told where to dial."""
    for name, folder in folders.items():
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        shutil.copytree(prepared.root, folder, dirs_exist_ok=True, ignore=OF_A_RUN)
        clock = folder.parent / "clocks" / name
        clock.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CLOCK, clock / CLOCK.name)
        (clock / "offset").write_text("0")
        if name in SITES:
            number = SITES.index(name) + 1
            text = f"name: {name}\ndata: {number}\naddress: {addresses[name]}\n"
            (folder / "site.yaml").write_text(text)


class Federation:
    """The nodes of one run. `enter`: what starts a command where a site lives.

    `tend` is called again and again; the other methods, by whoever disturbs them, from any thread.
    """

    def __init__(
        self, folders: Mapping[str, Path], enter: Mapping[str, Sequence[str]], listen: str = ""
    ) -> None:
        """`listen`: where the aggregator does, if not where the plan says."""
        self.folders, self._enter = folders, enter
        self._listen = ("--listen", listen) if listen else ()
        self.started = Counter[str]()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._due = dict.fromkeys(folders, 0.0)
        self._held = set[str]()
        self._one = threading.RLock()

    def words(self, name: str) -> tuple[str, ...]:
        if name == "aggregator":
            return (*FX, "aggregator", "start", *self._listen)
        return (*self._enter.get(name, ()), *FX, "collaborator", "start", "-n", name)

    def tend(self) -> None:
        """Start whatever should run and does not."""
        now = time.monotonic()
        with self._one:
            for name in self.folders:
                process = self._running.get(name)
                if process is not None and process.poll() is not None:
                    del self._running[name]
                    self._due[name] = now + AGAIN_S
                if name not in self._running and name not in self._held and now >= self._due[name]:
                    self._start(name)

    def _start(self, name: str) -> None:
        folder = self.folders[name]
        out = folder.parent / "said"
        out.mkdir(exist_ok=True)
        path = os.pathsep.join((str(folder.parent / "clocks" / name), str(CHECKOUT)))
        with (out / f"{name}.txt").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self.words(name),
                cwd=folder,
                env={**os.environ, "PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.started[name] += 1

    def hold(self, name: str) -> None:
        """Kill a node with all that belongs to it, and don't start it until `let_go`."""
        with self._one:
            self._held.add(name)
            if process := self._running.pop(name, None):
                process.kill()
                process.wait()
        self.gone(name, 10)

    def let_go(self, name: str) -> None:
        with self._one:
            self._held.discard(name)
            self._due[name] = 0.0

    def pid(self, node: str) -> int | None:
        """Of "aggregator", "agent NAME", "task NAME" or "site NAME"; None: it does not run now."""
        kind, _, name = node.rpartition(" ")
        if kind in ("", "site"):
            with self._one:
                process = self._running.get(name)
            return process.pid if process is not None and process.poll() is None else None
        module = {"agent": "openfed.launch.node", "task": "openfed.tasks.child"}[kind]
        return next((pid for pid, words in self._words(name) if module in words), None)

    def _words(self, name: str) -> list[tuple[int, list[str]]]:
        """Every process that works in a node's folder, or was told of it: pid, command line."""
        folder, found = str(self.folders[name]), []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if not entry.name.isdigit():
                    continue
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
                where = os.readlink(entry / "cwd")
                if f"{where}/".startswith(f"{folder}/") or folder in " ".join(words):
                    found.append((int(entry.name), words))
        return found

    def left(self) -> dict[str, list[int]]:
        """Processes of each node."""
        found = {name: [pid for pid, _ in self._words(name)] for name in self.folders}
        return {name: pids for name, pids in found.items() if pids}

    def gone(self, name: str, seconds: float) -> bool:
        """Wait until a node has no process any more; False: it still has one."""
        end = time.monotonic() + seconds
        while self._words(name):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def logs(self) -> list[Path]:
        """What every node has written for people."""
        return sorted(p for folder in self.folders.values() for p in folder.glob("logs/*.log"))

    def reason(self) -> str:
        return self._fact("reason")

    def status(self) -> str:
        """What the journal of the latest run says; empty while there is none to read."""
        return self._fact("status")

    def _fact(self, name: str) -> str:
        journals = sorted((self.folders["aggregator"] / "runs").glob("*/journal.sqlite"))
        if not journals:
            return ""
        with suppress(sqlite3.Error):
            db = sqlite3.connect(f"file:{journals[-1]}?mode=ro", uri=True, timeout=5)
            try:
                rows = db.execute("select value from facts where name = ?", (name,)).fetchall()
            finally:
                db.close()
            return str(rows[0][0]) if rows else ""
        return ""

    def ended(self) -> bool:
        return self.status() in ENDED

    def farewell(self, seconds: float) -> dict[str, list[int]]:
        """The run has ended: nodes end by themselves. Those that never heard of it, because their
        aggregator has gone, are asked to. Returns: the processes that are there after all."""
        with self._one:
            self._held |= set(self.folders)
            running = dict(self._running)
        end = time.monotonic() + seconds
        for ask in (None, signal.SIGTERM):
            for process in running.values():
                if ask and process.poll() is None:
                    process.send_signal(ask)
            for process in running.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.1, end - time.monotonic()))
            end = time.monotonic() + seconds
        for name in self.folders:
            self.gone(name, 5)
        return self.left()

    def kill_all(self) -> None:
        for pids in self.left().values():
            for pid in pids:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._running.values():
            process.wait()
