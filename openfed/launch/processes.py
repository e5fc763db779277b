"""Nodes as operating-system processes: scrubbed, watched, restarted, never left behind.

Every child has a pipe from here as its standard input and ends when that pipe closes, so nothing
survives this process, however it dies. Children are in sessions of their own: Ctrl-C reaches only
the person's `fx`, which then stops them in order.
"""

import heapq
import os
import queue
import signal
import site
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Protocol

LOG_LIMIT = 64 << 20
"""Most bytes of one node's log in one run; what a node prints beyond is dropped, and said so."""

PASSED_ON = frozenset({"PATH", "LANG", "LANGUAGE", "TMPDIR", "TZ", "VIRTUAL_ENV", "PYTHONPATH"})
"""The variables a child sees of ours, and `LC_*`. No proxy, no token, no home."""

CRASHES_ALLOWED = 3
GRACE_S = 5.0

PUMP_S = 1.0
"""How long after a node's end its pipes are still read. They end with the processes that it left
behind, which are killed; one that made a session of its own can hold a pipe for ever."""


class Kind(StrEnum):
    AGGREGATOR = "aggregator"
    AGENT = "agent"
    TASK = "task"


@dataclass(frozen=True)
class NodeSpec:
    """What to start, whatever starts it."""

    name: str  # unique among the nodes of a launch: "aggregator", "one", "one.task"
    kind: Kind
    module: str  # run as `python -m`
    arguments: tuple[str, ...]
    folder: Path  # the node's working folder and home
    log: Path  # a site's agent and task process share one
    threads: int = 1

    @property
    def site(self) -> str:
        """The collaborator whose agent or task process it is."""
        return self.name.removesuffix(".task")

    def option(self, flag: str) -> str:
        """The argument after a flag; empty without it."""
        words = self.arguments
        return words[words.index(flag) + 1] if flag in words else ""


@dataclass(frozen=True)
class Line:
    """A line of a node: an event as JSON from the aggregator, words for people from an agent."""

    name: str
    text: bytes


@dataclass(frozen=True)
class Exit:
    """A node ended; `code` is negative when a signal ended it."""

    name: str
    code: int
    lived_s: float


Tell = Callable[[Line | Exit], None]


class Node(Protocol):
    """One that was started."""

    def stop(self) -> None:
        """Ask it to end; returns at once."""
        ...

    def wait(self, grace_s: float) -> None:
        """Returns when it has ended; kills it after `grace_s`."""
        ...


class Launcher(Protocol):
    @property
    def isolation(self) -> str:
        """What keeps a task process in, for people: its level first."""
        ...

    def start(self, spec: NodeSpec, tell: Tell) -> Node:
        """`tell` is called from any thread: the lines, then the exit, once."""
        ...


def environment(outer: Mapping[str, str], spec: NodeSpec) -> dict[str, str]:
    """What a node sees of the environment `outer`."""
    kept = {k: v for k, v in outer.items() if k in PASSED_ON or k.startswith("LC_")}
    user_site = {"PYTHONUSERBASE": site.getuserbase()} if site.ENABLE_USER_SITE else {}
    return {
        **kept,
        **user_site,  # packages of `pip install --user` lie below the home that the node has not
        **settings(spec),
        "HOME": str(spec.folder),
    }


def settings(spec: NodeSpec) -> dict[str, str]:
    """The variables that every node gets, wherever it runs."""
    return {
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(spec.threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products on a GPU
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }


class Process:
    """A node that is a child process."""

    def __init__(self, spec: NodeSpec, tell: Tell, before: Sequence[str] = ()) -> None:
        """`before`: what starts the command."""
        spec.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        self.spec, self._tell, self._born = spec, tell, time.monotonic()
        self._telling, self._over = threading.Lock(), False
        events = spec.kind == Kind.AGGREGATOR
        self._process = subprocess.Popen(
            [*before, sys.executable, "-P", "-m", spec.module, *spec.arguments],
            cwd=spec.folder,
            env=environment(os.environ, spec),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if events else subprocess.STDOUT,
            start_new_session=True,
        )
        self._watcher = threading.Thread(target=self._watch, name=spec.name, daemon=True)
        self._watcher.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()

    def wait(self, grace_s: float) -> None:
        self._watcher.join(grace_s)
        if self._watcher.is_alive():
            self._process.kill()
            self._watcher.join()

    def _watch(self) -> None:
        pumps = [threading.Thread(target=self._pump, name=self.spec.name, daemon=True)]
        if self._process.stderr:
            pumps.append(threading.Thread(target=self._log, name=self.spec.name, daemon=True))
        for pump in pumps:
            pump.start()
        with suppress(ChildProcessError):  # not reaped yet: nobody else has its number
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it forked and left behind
        code = self._process.wait()
        end = time.monotonic() + PUMP_S
        for pump in pumps:
            pump.join(max(0.0, end - time.monotonic()))
        self.stop()
        with self._telling:
            self._over = True
            self._tell(Exit(self.spec.name, code, time.monotonic() - self._born))

    def _pump(self) -> None:
        """What the node prints, until nobody holds the other end: to whom it may concern."""
        if self.spec.kind == Kind.TASK:
            return self._log()
        assert self._process.stdout
        with self._process.stdout as out, self.spec.log.open("ab") as log:
            room = LOG_LIMIT - log.tell()
            for line in out:
                if self.spec.kind == Kind.AGENT:  # an aggregator's lines are events
                    room = put(log, line, room)
                self._pass_on(line)

    def _log(self) -> None:
        source = self._process.stderr or self._process.stdout
        assert source
        with source, self.spec.log.open("ab") as log:
            copy(source, log)

    def _pass_on(self, line: bytes) -> None:
        with self._telling:
            if not self._over:
                self._tell(Line(self.spec.name, line))


class Processes:
    """Launches child processes of this one."""

    isolation = "process"

    def start(self, spec: NodeSpec, tell: Tell) -> Node:
        return Process(spec, tell)


def copy(source: IO[bytes], log: IO[bytes], limit: int = LOG_LIMIT) -> None:
    """Everything of `source` to `log` until it holds `limit` bytes; the rest is read and dropped.

    Reading goes on, or the writer would block on a full pipe.
    """
    room = limit - log.tell()
    while block := os.read(source.fileno(), 1 << 16):
        room = put(log, block, room)


def put(log: IO[bytes], block: bytes, room: int) -> int:
    """Write as much of `block` as there is room for, and a last line when that was all of it.

    Returns: the room that is left.
    """
    if room > 0:
        log.write(block[:room])
        if len(block) >= room:
            log.write(b"\n[openfed] this log is full: the rest is dropped\n")
        log.flush()
    return room - len(block)


def restart_after(kind: Kind, code: int, crashes: int, lived_s: float) -> float | None:
    """Seconds to wait before a node that ended with `code` is started again; None for never.

    A task process ends whenever its agent cancels a task, so it always comes back, later and later
    when it dies young. The others come back when a signal ended them, not when they gave an answer.
    """
    if kind == Kind.TASK:
        return 0.0 if lived_s > 5 else min(10.0, 0.1 * 2.0 ** min(crashes, 10))
    return 0.2 if code < 0 and crashes < CRASHES_ALLOWED else None


class Supervisor:
    """Keeps the nodes of one launch going and says what happens to them."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._news: queue.SimpleQueue[Line | Exit] = queue.SimpleQueue()
        self._specs: dict[str, NodeSpec] = {}
        self._nodes: dict[str, Node] = {}
        self._crashes: dict[str, int] = {}
        self._due: list[tuple[float, str, int]] = []  # when, name, the code that it ended with
        self._restarts = True

    def start(self, spec: NodeSpec) -> None:
        self._specs[spec.name] = spec
        self._nodes[spec.name] = self._launcher.start(spec, self._news.put)

    def news(self) -> Iterator[Line | Exit]:
        """What happens, for ever; nodes are restarted in between. An `Exit` is told only when the
        node stays away, or comes back after a crash (then `running` says so)."""
        while True:
            try:
                happened = self._news.get(timeout=self._restart_due())
            except queue.Empty:
                continue
            if isinstance(happened, Exit):
                self._plan_restart(happened)
            yield happened

    def log(self, name: str) -> Path:
        return self._specs[name].log

    def returns(self, name: str) -> bool:
        """Whether a node that ended will be started again."""
        return any(name == due for _, due, _ in self._due)

    def finish(self) -> None:
        """Let nodes end from now on: their work is done."""
        self._restarts = False
        self._due.clear()

    def stop(self, grace_s: float = GRACE_S) -> None:
        """End every node: asked first, killed after `grace_s` altogether."""
        self.finish()
        for node in self._nodes.values():
            node.stop()
        end = time.monotonic() + grace_s
        for node in self._nodes.values():
            node.wait(max(0.0, end - time.monotonic()))
        self._nodes.clear()

    def _restart_due(self) -> float | None:
        """Start what is due; seconds until the next is."""
        while self._due and self._due[0][0] <= time.monotonic():
            _, name, code = heapq.heappop(self._due)
            spec = self._specs[name]
            if spec.kind == Kind.TASK:
                again = (*spec.arguments, "--previous-exit", str(code))
                spec = replace(spec, arguments=again)
            self._nodes[name] = self._launcher.start(spec, self._news.put)
        return max(0.0, self._due[0][0] - time.monotonic()) if self._due else None

    def _plan_restart(self, ended: Exit) -> None:
        kind, crashes = self._specs[ended.name].kind, self._crashes.get(ended.name, 0)
        wait = restart_after(kind, ended.code, crashes, ended.lived_s)
        self._crashes[ended.name] = 0 if wait == 0 else crashes + 1
        if wait is not None and self._restarts:
            heapq.heappush(self._due, (time.monotonic() + wait, ended.name, ended.code))
