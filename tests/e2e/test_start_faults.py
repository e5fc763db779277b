"""`fx aggregator start` and `fx collaborator start` name every fault that `fx doctor` names, by the
same code and with what to do, and end; what they can wait for, they say and wait for."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from openfed.errors import CODES, TaskError
from openfed.launch.doctor import examine
from openfed.launch.findings import Level
from openfed.node.trainer import Inputs, SocketTrainer
from openfed.plan.lock import read_lock
from openfed.tasks import channel
from openfed.tasks.base import Task
from openfed.tensors.frame import pack
from openfed.tensors.record import Record
from tests.e2e.faults import (
    AGG,
    AS_WELL,
    GREETINGS,
    LOCAL,
    MILL,
    SERVERS,
    SITE,
    Aggregator,
    aggregator,
    free_port,
    gone,
    stranger,
)
from tests.e2e.folders import FX

MOST_S = 2 * 10
"""Twice the time that is promised: machines are shared."""
STARTS = {AGG: ("aggregator", "start"), MILL: ("collaborator", "start", "-n", "mill")}
WAITING = {"T04", "T05", "T06", "T09", "T12"}
"""Nobody is there yet, or nobody answers: no fault that only a person could end."""

EVERYDAY = {
    "no approval",
    "an expired certificate",
    "no data",
    "a revoked node",
    "a host that the certificate lacks",
    "a port that is taken",
    "another authority's",
    "another plan",
}


def cases(table):
    """The faults of a table; all but a few of every kind take their time together."""
    slow = pytest.mark.slow
    return [pytest.param(fault, marks=() if fault in EVERYDAY else slow) for fault in table]


def left(root: Path) -> list[str]:
    """The command lines of processes that work below `root`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [words for words in found if str(root) in words]


def named(workspace) -> list[str]:
    """What fails by `fx doctor`, in its order; without that nobody listens yet."""
    found = [each.code for each in examine(workspace) if each.level is Level.FAIL]
    return [code for code in found if code != "T05"]


def refused(workspace, side, code, words, ends, more=()):
    """`start` ends in time by this code, with what to do, and leaves nothing. `more`: what it may
    say before."""
    began = time.monotonic()
    done = subprocess.run(
        [*FX, *STARTS[side]], cwd=workspace.root, capture_output=True, text=True, timeout=60
    )
    spent = time.monotonic() - began
    said = done.stdout + done.stderr
    assert (done.returncode, spent < MOST_S) == (ends, True), f"{spent:.1f} s: {said}"
    assert re.search(rf"(^|\s){code}  ", said) and words in said, said
    assert CODES[code].remedy and any(
        f"(more: fx explain {each})" in said for each in (code, *more)
    )
    assert "Traceback" not in said
    assert not left(workspace.root), left(workspace.root)


FAULTS = {fault: case for fault, case in LOCAL.items() if case[-1]}
"""Those that are more than a warning."""


@pytest.mark.parametrize("fault", cases(FAULTS))
def test_a_fault_that_files_show_ends_the_start_before_anything_runs(fault, world):
    side, seed, code, words, ends = FAULTS[fault]
    seed(world)
    workspace = world.side(side)
    as_well = AS_WELL.get(fault, set())
    assert next(each for each in named(workspace) if each not in as_well) == code
    refused(workspace, side, code, words, ends, as_well)
    assert not (workspace.logs / "events.jsonl").exists(), "no run was begun"
    assert not list(workspace.runs.glob("*/journal.sqlite"))
    assert not (workspace.runs / "exchange").exists()


def test_the_tables_have_the_faults_that_are_promised():
    permanent = [case for case in SERVERS.values() if case[1] not in WAITING]
    refusals = [case for case in GREETINGS.values() if case[2] not in WAITING]
    assert len(FAULTS) >= 30 and len(permanent) >= 7 and len(refusals) >= 4
    assert {case[0] for case in FAULTS.values()} == {AGG, MILL}
    assert {case[-1] for case in FAULTS.values()} >= {1, 2, 3, 4, 6}
    assert not {code for _, _, code, _, _ in FAULTS.values()} & WAITING


def test_a_fault_is_told_with_all_others_and_what_to_do_about_each(world):
    world.leaf(MILL, age=31 * 86400)
    gone(world.mill.root / "data")
    done = subprocess.run(
        [*FX, *STARTS[MILL]], cwd=world.mill.root, capture_output=True, text=True, timeout=60
    )
    first, remedy, second, other, more = done.stderr.splitlines()
    assert first.startswith("C05  certificate of mill: ") and remedy.startswith("      -> ")
    assert second.startswith("FAIL  data of mill: U62  ") and other.startswith("      -> ")
    assert (done.returncode, more) == (3, "(more: fx explain C05)")


def test_a_refused_start_leaves_the_logs_of_the_run_before(world):
    world.agg.logs.mkdir()
    (world.agg.logs / "events.jsonl").write_text('{"event":"note","at":1.0,"text":"before"}\n')
    seed = LOCAL["a port that is taken"][1]
    seed(world)
    refused(world.agg, AGG, "T02", "in use", 4)
    assert "before" in (world.agg.logs / "events.jsonl").read_text()


# -- on the network --------------------------------------------------------------------------------


def dialling(world, address) -> None:
    (world.mill.root / "site.yaml").write_text(SITE.format(address=address))


def both_name(world, address, code, words, ends):
    """`start` and `doctor`, in the same state."""
    dialling(world, address)
    refused(world.mill, MILL, code, words, ends)
    assert named(world.mill) == [code]


@pytest.mark.parametrize("fault", cases(f for f, case in SERVERS.items() if case[1] not in WAITING))
def test_a_server_that_is_not_our_aggregator_ends_the_start(fault, world, tmp_path):
    server, code, words, ends = SERVERS[fault]
    with server(world, tmp_path) as port:
        both_name(world, f"localhost:{port}", code, words, ends)


@asynccontextmanager
async def greeter(world, fault):
    make, options, *_ = GREETINGS[fault]
    async with aggregator(world, make, **options) as address:
        yield address


@pytest.mark.parametrize(
    "fault", cases(f for f, case in GREETINGS.items() if case[2] not in WAITING)
)
def test_what_the_aggregator_refuses_ends_the_start(fault, world):
    *_, code, words, ends = GREETINGS[fault]

    async def main():
        async with greeter(world, fault) as address:
            await asyncio.to_thread(both_name, world, address, code, words, ends)

    asyncio.run(main())


@pytest.mark.slow
def test_an_aggregator_that_does_not_take_our_certificate_ends_the_start(world):
    async def main():
        async with aggregator(world, Aggregator, identity=stranger(world)) as address:
            words = "refuses the certificate of collaborator 'mill'"
            await asyncio.to_thread(both_name, world, address, "C24", words, 3)

    asyncio.run(main())


def test_an_agent_that_ends_while_its_task_process_comes_says_nothing_of_it(tmp_path, caplog):
    async def main():
        trainer = SocketTrainer(tmp_path, lambda text: None)
        await trainer.start()
        with socket.socket(socket.AF_UNIX) as process:
            process.connect(str(tmp_path / "agent.sock"))
            for _ in range(10):
                await asyncio.sleep(0)  # it is accepted, and has not said who it is
            await trainer.close()
            process.settimeout(10)
            assert process.recv(1) == b""

    asyncio.run(main())
    assert not caplog.records


@pytest.mark.parametrize(("code", "kind"), [("S12", OSError), ("K02", TaskError)])
def test_a_full_disk_under_a_task_stops_the_agent_and_fails_no_round(tmp_path, code, kind):
    """So that it goes on where it was when there is room again, as with its own full disk."""

    def task_process():
        with channel.connect(tmp_path) as connection:
            channel.send(connection, {"op": "hello"})
            channel.send(connection, {"op": "ready"})
            assert channel.receive(connection)["op"] == "run"
            channel.send(connection, {"op": "failed", "code": code, "message": "No space left"})
            channel.receive(connection)

    async def main():
        trainer = SocketTrainer(tmp_path, lambda text: None)
        await trainer.start()
        process = asyncio.create_task(asyncio.to_thread(task_process))
        (tmp_path / "model").write_bytes(pack(Record()))
        inputs = Inputs(tmp_path / "model", None, None)
        with pytest.raises(kind, match="No space left"):
            await trainer.run(Task("train", 1, 1, "mill", 0), inputs, 1 << 20)
        await trainer.close()
        await process

    asyncio.run(main())


# -- what is waited for ----------------------------------------------------------------------------


class Waiting:
    """`fx collaborator start`, which says within the time that is promised what it waits for."""

    def __init__(self, workspace):
        self.root, self.lines = workspace.root, []
        self.process = subprocess.Popen(
            [*FX, *STARTS[MILL]],
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        self.process.kill()
        self.process.communicate()

    def says(self, code):
        hung = threading.Timer(60, self.process.kill)
        hung.start()
        began = time.monotonic()
        for line in self.process.stderr:
            self.lines.append(line)
            if "waiting for the aggregator at" in line:
                break
        spent = time.monotonic() - began
        hung.cancel()
        said = "".join(self.lines)
        assert spent < MOST_S and self.process.poll() is None, f"{spent:.1f} s: {said}"
        assert f": {code}  " in self.lines[-1] and CODES[code].remedy in self.lines[-1], said

    def ends_on_ctrl_c(self):
        self.process.send_signal(signal.SIGINT)
        _, rest = self.process.communicate(timeout=30)
        assert self.process.returncode == 130, rest
        assert "Interrupted." in rest and "Traceback" not in rest
        assert not left(self.root)


def waits(world, address, code):
    dialling(world, address)
    with Waiting(world.mill) as start:
        start.says(code)
        start.ends_on_ctrl_c()


def test_an_aggregator_that_is_not_up_yet_is_waited_for_and_dialled_again(world):
    port = free_port()
    dialling(world, f"localhost:{port}")
    with Waiting(world.mill) as start:
        start.says("T05")
        second = subprocess.run(
            [*FX, *STARTS[MILL]], cwd=world.mill.root, capture_output=True, text=True, timeout=60
        )
        assert (second.returncode, second.stderr[:3]) == (1, "S11"), second.stderr
        with socket.create_server(("127.0.0.1", port)) as listener:
            listener.settimeout(30)
            connection, _ = listener.accept()  # it dials again
            connection.close()
        start.ends_on_ctrl_c()


@pytest.mark.slow
def test_a_name_that_does_not_resolve_is_waited_for(world):
    waits(world, "nobody.invalid:50051", "T04")


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f, case in SERVERS.items() if case[1] in WAITING])
def test_a_server_that_says_nothing_is_waited_for(fault, world, tmp_path):
    server, code, *_ = SERVERS[fault]
    with server(world, tmp_path) as port:
        waits(world, f"localhost:{port}", code)


@pytest.mark.slow
def test_an_aggregator_that_does_not_answer_is_waited_for(world):
    async def main():
        async with greeter(world, "no answer") as address:
            await asyncio.to_thread(waits, world, address, "T12")

    asyncio.run(main())


# -- beside a node that runs -----------------------------------------------------------------------


def test_what_is_no_fault_is_told_and_the_aggregator_starts(world):
    """Warnings of `fx doctor`; and a second start here leaves the first one alone."""
    world.edit(AGG, "plan/plan.yaml", "rounds: 2", "rounds: 3")
    os.utime(world.agg.lock, (time.time() + 300,) * 2)
    first = subprocess.Popen(
        [*FX, *STARTS[AGG]],
        cwd=world.agg.root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    hung = threading.Timer(60, first.kill)
    hung.start()
    lines = []
    try:
        for line in first.stderr:
            lines.append(line)
            if line.startswith("waiting for"):
                break
        said = "".join(lines)
        assert "P30  " in said and "U65  " in said and "listening on" in said, said
        before = (world.agg.logs / "events.jsonl").read_bytes()
        second = subprocess.run(
            [*FX, *STARTS[AGG]], cwd=world.agg.root, capture_output=True, text=True, timeout=60
        )
        assert (second.returncode, second.stderr[:3]) == (2, "U20"), second.stderr
        after = (world.agg.logs / "events.jsonl").read_bytes()
        assert after.startswith(before) and after.count(b'"launched"') == 1
        assert first.poll() is None
    finally:
        hung.cancel()
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)
    assert first.returncode == 130
    port = int(read_lock(world.agg.lock).listen.rpartition(":")[2])
    socket.create_server(("127.0.0.1", port)).close()
    shutil.rmtree(world.agg.runs)
