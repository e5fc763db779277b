"""One framework in a process of its own, with a network of its own, measured round by round.

    python -m bench.peers.drive JSON

A round lasts from the moment when the last site has trained to the same moment of the next one:
upload, aggregation, download, polling and training. Sites tell it on a Unix socket.
"""

import ctypes
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import task
from bench.meter import (
    Mark,
    alone_on_the_network,
    between,
    children,
    command,
    loopback_bytes,
    peak_mb,
    tree_cpu_seconds,
)
from bench.peers.place import Peer, Place
from openfed.pki.files import ensure_federation

STALL_S = 180.0
"""A framework that tells nothing for so long has failed."""


def drive(peer: str, n: int, mb: int, rounds: int, tuned: bool, cache: str) -> dict[str, Any]:
    module: Peer = importlib.import_module(f"bench.peers.{peer}")  # type: ignore[assignment]
    counted = alone_on_the_network()
    adopt_orphans()
    kept = Path(cache) / f"{peer}-kept"
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="openfed-bench-") as folder:
        root = Path(folder)
        ensure_federation(root / "cert", "bench", ("localhost", "127.0.0.1"), (), time.time())
        place = Place(
            n, mb, rounds, tuned, root, Path(cache) / peer, kept, root / "cert", root / "told"
        )
        place.copy("told.py", into=place.site)
        shutil.copy(task.__file__, place.site / "task.py")
        with listening_to(place.told) as told:
            try:
                module.prepare(place)
                seen = Seen(n, rounds, module)
                module.launch(place)
                seen.listen(told)
            except (RuntimeError, TimeoutError) as error:
                raise SystemExit(f"{peer}: {error}\n{last_words(root)}") from None
            finally:
                end_all()
    return {"counted": counted, **seen.found()}


@dataclass
class Seen:
    """What sites told, and what had been used by then."""

    n: int
    rounds: int
    module: Peer
    marks: list[Mark] = field(default_factory=list)
    weights: dict[int, dict[int, float]] = field(default_factory=dict)  # round -> site -> weight
    peaks: dict[int, tuple[str, float]] = field(default_factory=dict)  # process -> kind, MiB

    def listen(self, told: socket.socket) -> None:
        """Until every site has trained in every round. Raises: TimeoutError, RuntimeError."""
        while len(self.marks) < self.rounds:
            message = json.loads(told.recv(4096))
            came = self.weights.setdefault(message["round"], {})
            came[message["who"]] = message["weight"]
            if len(came) == self.n:
                self.look()
        self.check()

    def look(self) -> None:
        pids = children([os.getpid()])
        cpu = sum(map(tree_cpu_seconds, pids))
        self.marks.append(Mark(time.perf_counter(), cpu, loopback_bytes()))
        for pid in pids:
            kind = self.module.classify(command(pid))
            _, before = self.peaks.get(pid, ("", 0.0))
            self.peaks[pid] = kind, max(before, peak_mb(pid))

    def check(self) -> None:
        """Each round moved the model by the mean of the sites' constants."""
        mean = task.STEP * (self.n + 1) / 2
        for number in range(1, self.rounds + 1):
            for who, weight in self.weights[number].items():
                expected = self.weights[1][who] + (number - 1) * mean
                if abs(weight - expected) > 1e-4:
                    raise RuntimeError(f"round {number}, site {who}: {weight}, not {expected}")

    def found(self) -> dict[str, Any]:
        rounds = [vars(used) for used in between(self.marks)]
        peaks = {kind: 0.0 for kind in ("server", "client")}
        for kind, mb in self.peaks.values():
            if kind == "server":
                peaks[kind] += mb
            elif kind == "client":
                peaks[kind] = max(peaks[kind], mb)
        return {"rounds": rounds, "peak_mb": peaks}


@contextmanager
def listening_to(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(STALL_S)
        yield told


def adopt_orphans() -> None:
    """What daemonises itself below this process stays below it, and is counted and ended."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def end_all() -> None:
    """End every process below this one, by its number."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in children([os.getpid()]) - {os.getpid()}:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + 5
        while time.monotonic() < end and len(children([os.getpid()])) > 1:
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            time.sleep(0.05)


def last_words(root: Path) -> str:
    logs = sorted(root.glob("*.log"))
    return "\n".join(f"{log.name}: {log.read_text(errors='replace')[-1200:]}" for log in logs)


def apart(peer: str, n: int, mb: int, rounds: int, tuned: bool, cache: str) -> dict[str, Any]:
    """What `drive` finds, in a new process."""
    about = {"peer": peer, "n": n, "mb": mb, "rounds": rounds, "tuned": tuned, "cache": cache}
    given = [sys.executable, "-m", "bench.peers.drive", json.dumps(about)]
    done = subprocess.run(given, capture_output=True, text=True)
    if done.returncode:
        return {"failed": done.stderr[-3000:]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    print(json.dumps(drive(**json.loads(sys.argv[1]))))
