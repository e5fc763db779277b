"""The aggregator as a process of its own, as always; the sites are played by a few processes over
real mTLS links, so that many of them fit on one machine."""

import json
import queue
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.launch.federation import aggregator_spec, certificates
from openfed.launch.initial import initialize
from openfed.launch.places import dialled, with_port
from openfed.launch.processes import Exit, Line, Processes
from openfed.plan.load import load_plan
from openfed.store.runs import new_run_id, run_folder
from openfed.workspace import Workspace, open_workspace

Event = Mapping[str, Any]
Players = Sequence["subprocess.Popen[bytes]"]


@dataclass(frozen=True)
class Alone:
    """An aggregator at work. `folder`: of its run."""

    workspace: Workspace
    folder: Path
    pid: int
    address: str
    told: "queue.SimpleQueue[Line | Exit]"

    def events(self, players: Players) -> Iterator[Event]:
        """Until the run has completed; whatever else ends, ends the bench."""
        while True:
            try:
                news = self.told.get(timeout=1)
            except queue.Empty:
                if any(player.poll() for player in players):
                    raise SystemExit("the sites ended before the run did") from None
                continue
            if isinstance(news, Exit):
                raise SystemExit(_last_words(self.workspace, news.code))
            event = json.loads(news.text)
            yield event
            if event["event"] == "run.ended":
                if event["status"] != "completed":
                    raise SystemExit(f"the run {event['status']}: {event['reason']}")
                return


def _last_words(workspace: Workspace, code: int) -> str:
    log = workspace.log("aggregator")
    words = log.read_text()[-2000:] if log.exists() else ""
    killed = " (killed: it needed more memory than it may use?)" if code == -9 else ""
    return f"the aggregator ended with code {code}{killed}\n{words}"


@contextmanager
def aggregator(root: Path) -> Iterator[Alone]:
    """Serves the run of the workspace until the block ends."""
    opened = open_workspace(str(root))
    lock, _, _ = initialize(opened, load_plan(opened.plan, ()), Processes(), lambda text: None)
    certificates(opened, lock, lock.plan.named)
    listen = with_port(lock.listen)
    opened.runs.mkdir(mode=0o700, exist_ok=True)
    told: queue.SimpleQueue[Line | Exit] = queue.SimpleQueue()
    run = new_run_id()
    node = Processes().start(aggregator_spec(opened, run, listen), told.put)
    pid: int = node.pid  # type: ignore[attr-defined]  # what `Processes` starts is a process
    address = dialled(lock.advertise[0], listen)
    try:
        yield Alone(opened, run_folder(opened.root, run), pid, address, told)
    finally:
        node.stop()
        node.wait(10)


@contextmanager
def sites(alone: Alone, names: Sequence[str], processes: int = 1) -> Iterator[Players]:
    """Played until the run has ended, or the block; they have half a minute to take their leave."""
    root = str(alone.workspace.root)
    players = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.light", root, alone.address, *names[first::processes]]
        )
        for first in range(min(processes, len(names)))
    ]
    try:
        yield players
        end = time.monotonic() + 30
        for player in players:
            with suppress(subprocess.TimeoutExpired):
                player.wait(max(0.0, end - time.monotonic()))
    finally:
        for player in players:
            player.kill()
            player.wait()
