"""Any one process is killed at any moment: nothing is left over, and the run is in one state, with
a reason, which is its end or one from which it goes on to the same model."""

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openfed.plan.schema import Timeouts

pytestmark = pytest.mark.slow

LEASE_S = Timeouts().idle

SLOWLY = """
def called(data):  # nothing can be written in a sandbox
    return 1
_train = train
def train(record, data, settings):
    time.sleep(0.2)
    return _train(record, data, settings)
"""
"""So that a moment drawn at random often lies in a training."""

LEVELS = [
    "process",
    pytest.param(
        "sandbox", marks=pytest.mark.skipif(not shutil.which("bwrap"), reason="no bubblewrap")
    ),
]


def left_over(root: Path) -> dict[int, str]:
    """Processes that have this folder on their command line or in their environment."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            words = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(root).encode() in words:
            found[int(entry.name)] = words[:300].replace(b"\0", b" ").decode(errors="replace")
    return found


def all_events(here) -> int:
    path = here.root / "logs" / "events.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def journaled(here) -> dict[str, tuple[str, str]]:
    """Each run's status and reason, as its journal has them."""
    found = {}
    for path in (here.root / "runs").glob("*/journal.sqlite"):
        with sqlite3.connect(path) as db:
            if db.execute("select 1 from sqlite_master where name = 'facts'").fetchone():
                facts = dict(db.execute("select name, value from facts"))
                if facts:
                    found[path.parent.name] = facts["status"], facts["reason"]
        db.close()
    return found


def kill(here, run, role: str, chosen: random.Random) -> None:
    """SIGKILL for one process, at a moment that the seed decides."""
    events, pause = chosen.randrange(0, 60), chosen.uniform(0, 0.4)
    here.wait_until(lambda: all_events(here) >= events, f"{events} events")
    time.sleep(pause)  # a moment like any other: nothing is waited for
    if role != "fx":
        here.wait_until(lambda: role in here.processes() or run.poll() is not None, role)
    with_it = {"fx": run.pid, **here.processes()}
    if role in with_it and run.poll() is None:
        try:
            os.kill(with_it[role], signal.SIGKILL)
        except ProcessLookupError:
            return


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("role", ["aggregator", "agent mill", "task mill", "fx"])
def test_a_process_that_is_killed_leaves_nothing_and_the_run_has_one_state(
    workspace, undisturbed, role, seed, level
):
    chosen = random.Random(f"{role} {seed} {level}")
    here = workspace.line(fault=SLOWLY)
    here.go()
    if level == "sandbox":
        local = here.root / "local.yaml"
        local.write_text(f"isolation: sandbox\n{local.read_text()}")
    run = here.start("run")
    kill(here, run, role, chosen)
    run.wait(2 * LEASE_S)
    here.wait_until(lambda: not left_over(here.root), "the end of all processes", 2 * LEASE_S)
    told = json.loads(here.fx("status", "--json").stdout)
    runs = journaled(here)
    assert len(runs) <= 1
    states = {"interrupted": "running", "none": None}
    (found,) = runs.values() or [(None, None)]
    assert states.get(told["status"], told["status"]) == found[0], "status and journal agree"
    if told["status"] in ("interrupted", "none"):
        assert role == "fx", here.said(run)  # of the others, what is killed is started again
        again = here.fx("run")
        assert again.returncode == 0, again.stderr
        assert list(journaled(here).values()) == [("completed", "")]
    else:
        assert (told["status"], run.returncode) in {("completed", 0), ("completed", -9)}
    assert here.digest() == undisturbed
    assert not left_over(here.root)


def start_keeper(here):
    """What runs in a task container, beside an agent that is started without its task process."""
    exchange = here.root / "runs" / "exchange" / "mill"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "openfed.launch.keeper", "--exchange", str(exchange)],
        env={**os.environ, "HOME": str(here.root)},
    )
    here.started.append(process)
    return process


@pytest.mark.parametrize("role", ["keeper", "mill", "agent mill"])
def test_where_a_keeper_holds_the_task_process_any_one_may_be_killed(workspace, undisturbed, role):
    here = workspace.line()
    assert here.fx("plan", "initialize").returncode == 0
    nodes = {"aggregator": here.start("aggregator", "start")}
    nodes["farm"] = here.start("collaborator", "start", "-n", "farm")
    nodes["mill"] = here.start("collaborator", "start", "-n", "mill", "--without-task")
    nodes["keeper"] = start_keeper(here)
    here.wait_until(lambda: here.calls("mill") == 3, "round 3 at mill")
    task = here.processes()["task mill"]
    os.kill(nodes[role].pid if role in nodes else here.processes()[role], signal.SIGKILL)
    here.wait_until(lambda: here.processes().get("task mill") != task, "its end", 20)
    if role == "mill":
        nodes["mill"].wait()
        here.wait_until(lambda: "agent mill" not in here.processes(), "its agent's end", 20)
        nodes["mill"] = here.start("collaborator", "start", "-n", "mill", "--without-task")
    elif role == "keeper":
        nodes["keeper"].wait()
        nodes["keeper"] = start_keeper(here)
    here.go()
    codes = {name: node.wait(2 * LEASE_S) for name, node in nodes.items()}
    here.wait_until(lambda: not left_over(here.root), "the end of all processes", 2 * LEASE_S)
    ((status, reason),) = journaled(here).values()
    assert (status, reason) == ("completed", "") and set(codes.values()) == {0}
    assert here.digest() == undisturbed
