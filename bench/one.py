"""One federation in a process of its own, with a network of its own, measured round by round."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import bare, workspace
from bench.meter import (
    Mark,
    alone_on_the_network,
    between,
    children,
    command,
    cpu_seconds,
    mark,
    peak_mb,
)
from openfed.launch.federation import run_federation
from openfed.pki.files import ensure_federation
from openfed.tensors.model_file import read_model
from openfed.workspace import open_workspace

BARE, OPENFED = "bare", "openfed"
KINDS = {
    "openfed.launch.node aggregator": "server",
    "openfed.launch.node agent": "agents",
    "openfed.tasks.child": "tasks",
    " serve ": "server",
    " join ": "clients",
}
"""Words of a command line -> what the process is."""

Found = dict[str, Any]
RoundEnded = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """What is to be run. `rounds` has one more than are measured: the first warms up."""

    n: int
    mb: int
    rounds: int
    pipeline: Mapping[str, Any] | None = None
    profile: str | None = None
    strategy: str = "fedavg"


def apart(side: str, case: Case) -> Found:
    """What `run` finds, in a new process: nothing is left over from one run to the next."""
    about = json.dumps({"side": side, **vars(case)})
    done = subprocess.run([sys.executable, "-m", "bench.one", about], stdout=subprocess.PIPE)
    if done.returncode:
        raise SystemExit(f"{side} ended with code {done.returncode}: {about}")
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def run(side: str, case: Case) -> Found:
    """Run one side and measure its rounds, the first left out."""
    counted = alone_on_the_network()
    name = f"{side}-{case.n}x{case.mb}"
    watch = Watch(Path(case.profile) / name if case.profile else None)
    with tempfile.TemporaryDirectory(prefix="openfed-bench-") as folder:
        SIDES[side](Path(folder), case, watch.round_ended)
    return {"counted": counted, **watch.found()}


class Watch:
    """The processes of one federation, looked at whenever a round ends."""

    def __init__(self, profile: Path | None) -> None:
        self._profile, self._kinds = profile, dict[int, str]()
        self._marks: list[Mark] = []
        self._cpu: list[dict[str, float]] = []
        self._peaks: dict[str, float] = {}
        self._samplers: list[subprocess.Popen[bytes]] = []

    def round_ended(self) -> None:
        if not self._kinds:
            self._kinds = {pid: kind_of(pid) for pid in children([os.getpid()])}
            if self._profile:
                self._samplers = start_profile(self._kinds, self._profile)
        self._marks.append(mark(self._kinds))
        used: dict[str, float] = {}
        for pid, kind in self._kinds.items():
            used[kind] = used.get(kind, 0.0) + cpu_seconds(pid)
            self._peaks[kind] = max(self._peaks.get(kind, 0.0), peak_mb(pid))
        self._cpu.append(used)

    def found(self) -> dict[str, Any]:
        for sampler in self._samplers:
            sampler.wait()
        if self._profile:
            print_profile(self._profile)
        rounds = between(self._marks)
        first, last = self._cpu[0], self._cpu[-1]
        return {
            "rounds": [vars(used) for used in rounds],
            "cpu_by_kind": {kind: (last[kind] - first[kind]) / len(rounds) for kind in last},
            "peak_mb": self._peaks,  # the largest of a kind
        }


def kind_of(pid: int) -> str:
    """What a process of a federation is, by its command line."""
    line = command(pid)
    for words, kind in KINDS.items():
        if words in line:
            return kind
    return "launcher"


def run_bare(root: Path, case: Case, ended: RoundEnded) -> None:
    names = workspace.site_names(case.n)
    ensure_federation(root / "cert", "bench", ("localhost",), tuple(names), time.time())
    for _ in bare.run(root / "cert", names, case.mb, case.rounds):
        ended()


def run_openfed(root: Path, case: Case, ended: RoundEnded) -> None:
    def observe(event: Mapping[str, Any]) -> None:
        if event["event"] == "round.ended":
            ended()

    names = workspace.site_names(case.n)
    workspace.write(root, names, case.mb, case.rounds, case.pipeline, case.strategy)
    opened = open_workspace(root)
    result = run_federation(opened, (), "auto", observe)
    if result.exit_code:
        raise SystemExit(f"openfed: {result.json}")
    if case.pipeline is None:
        check_moved(opened.model("bench", "init"), opened.model("bench", "last"), case)


SIDES = {BARE: run_bare, OPENFED: run_openfed}


def check_moved(initial: Path, last: Path, case: Case) -> None:
    """The run did what it should: each weight moved by the mean of the constants, every round.

    The median of 1..N, too, is their mean.
    """
    before, after = read_model(initial), read_model(last)
    for name, value in before.items():
        moved = after[name] - value  # exact: see bench/task.py
        if not np.all(moved == np.float32(workspace.expected_move(case.n, case.rounds))):
            raise SystemExit(f"{name} moved by {moved.min()} to {moved.max()}")


# -- profile ---------------------------------------------------------------------------------------


def start_profile(kinds: Mapping[int, str], folder: Path) -> list[subprocess.Popen[bytes]]:
    """Have `perf` sample the processes of each kind: FOLDER/KIND.data."""
    if shutil.which("perf") is None:
        raise SystemExit("--profile needs perf (the package linux-perf or linux-tools)")
    folder.mkdir(parents=True, exist_ok=True)
    started = []
    for kind in sorted({*kinds.values()} - {"launcher"}):
        pids = ",".join(str(pid) for pid, each in kinds.items() if each == kind)
        given = ["record", "-q", "-e", "cpu-clock", "-F", "499", "-g", "-p", pids]
        started.append(subprocess.Popen(["perf", *given, "-o", str(folder / f"{kind}.data")]))
    return started


def print_profile(folder: Path) -> None:
    """Where the CPU time of each kind of process went, by library and by function."""
    for data in sorted(folder.glob("*.data")):
        for sort, most in (("dso", 8), ("dso,sym", 15)):
            given = ["report", "-i", str(data), "--stdio", "--no-children", "-g", "none", "-q"]
            done = subprocess.run(["perf", *given, "--sort", sort], capture_output=True, text=True)
            lines = [line for line in done.stdout.splitlines() if line.strip()][:most]
            said = lines or ["nothing was sampled: the rounds were over too soon"]
            print(f"\n{folder.name} {data.stem}, by {sort}", *said, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    _given = json.loads(sys.argv[1])
    _side = _given.pop("side")
    print(json.dumps(run(_side, Case(**_given))))
