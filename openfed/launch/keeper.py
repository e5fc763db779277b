"""Keeps the task process of a container going: all that runs in a task service of Compose.

    python -P -m openfed.launch.keeper --exchange DIR

The agent is in another container; they share the exchange folder alone. Its `task.json` says how
things stand: while the agent is at work it holds a lock on the one that it wrote, and when the
run has ended it removes it. So a task process starts with what the agent of now has written, never
with what one before it left, and this ends with the run.
"""

import argparse
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from openfed.files import lock_file
from openfed.launch.processes import (
    Kind,
    Node,
    NodeSpec,
    Processes,
    Tell,
    environment,
    restart_after,
)

TASK, TOLD = "openfed.tasks.child", "task.json"
LOOK_S = 0.2


def keep(exchange: Path, start: Callable[[Path, int | None], subprocess.Popen[bytes]]) -> None:
    """Returns when the run has ended."""
    told, crashes = exchange / TOLD, 0
    previous: int | None = None
    met = False  # an agent
    while at_work(told, met):
        met = True
        born = time.monotonic()
        previous = _end_of(start(exchange, previous), told)
        if not told.exists():
            return
        wait = restart_after(Kind.TASK, previous, crashes, time.monotonic() - born) or 0.0
        crashes = crashes + 1 if wait else 0
        time.sleep(wait)


def at_work(told: Path, met: bool) -> bool:
    """Wait for an agent; `met`: there was one. False: there was, and the run has ended."""
    seen = met or told.exists()
    while not held(told):
        if seen and not told.exists():
            return False
        seen = seen or told.exists()
        time.sleep(LOOK_S)
    return True


def held(told: Path) -> bool:
    """Whether somebody else holds a lock on the file."""
    try:
        descriptor = os.open(told, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def started(exchange: Path, previous: int | None) -> subprocess.Popen[bytes]:
    """A task process; its standard input is a pipe from here, which closes with us."""
    arguments = ["--exchange", str(exchange)]
    arguments += [] if previous is None else ["--previous-exit", str(previous)]
    home = Path(os.environ.get("HOME", "/tmp"))
    spec = NodeSpec("task", Kind.TASK, TASK, tuple(arguments), home, home)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", TASK, *arguments],
        cwd=home,
        env=environment(os.environ, spec),
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


class Apart:
    """Launches the nodes of a site whose task process is started by a keeper, elsewhere."""

    isolation = "container"

    def start(self, spec: NodeSpec, tell: Tell) -> Node:
        if spec.kind != Kind.TASK:
            return Processes().start(spec, tell)
        return _AtWork(Path(spec.option("--exchange")) / TOLD)


class _AtWork:
    """Stands for a task process that is elsewhere; `told` is locked until it is to stop."""

    def __init__(self, told: Path) -> None:
        self._held = [lock_file(told, wait=True)]  # a keeper has it, when it looks, for a moment

    def stop(self) -> None:
        while self._held:
            os.close(self._held.pop())

    def wait(self, grace_s: float) -> None:
        pass


def _end_of(process: subprocess.Popen[bytes], told: Path) -> int:
    """How it ended: by itself or, when the run had, by us; what it left behind goes with it."""
    look = os.WEXITED | os.WNOWAIT | os.WNOHANG  # not reaped yet: nobody else has its number
    try:
        while os.waitid(os.P_PID, process.pid, look) is None and told.exists():
            time.sleep(LOOK_S)
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
    if process.stdin:
        process.stdin.close()
    return code


def main() -> None:
    parser = argparse.ArgumentParser(prog="openfed.launch.keeper")
    parser.add_argument("--exchange", type=Path, required=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        keep(parser.parse_args().exchange.absolute(), started)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
