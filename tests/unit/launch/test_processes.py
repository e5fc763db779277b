import json
import os
import queue
import select
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest

from openfed.launch.processes import (
    CRASHES_ALLOWED,
    Exit,
    Kind,
    Line,
    NodeSpec,
    Process,
    Processes,
    Supervisor,
    copy,
    environment,
    restart_after,
)

NODES = {
    "tells": "import os, sys; print(os.getpid(), *sys.argv[1:], flush=True); sys.stdin.read()",
    "looks": (
        "import json, os, sys\n"
        "fds = sorted(int(f) for f in os.listdir('/proc/self/fd'))\n"
        "about = {'env': dict(os.environ), 'fds': fds, 'cwd': os.getcwd(), 'path': sys.path}\n"
        "about['leads'] = os.getsid(0) == os.getpid()\n"
        "print(json.dumps(about), flush=True)"
    ),
    "dies": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "again": (
        "import os, signal, sys\n"
        "print(*sys.argv[1:], flush=True)\n"
        "'--previous-exit' in sys.argv or os.kill(os.getpid(), signal.SIGKILL)"
    ),
    "ends": "import sys; sys.exit(3)",
    "forks": (
        "import os, sys, time\n"
        "if pid := os.fork():\n"
        "    print(pid, flush=True)\n"
        "    os._exit(0)\n"
        "time.sleep(60)"
    ),
    "escapes": (
        "import os, sys, time\n"
        "reading, writing = os.pipe()\n"
        "if pid := os.fork():\n"
        "    os.read(reading, 1)\n"
        "    print(pid, flush=True)\n"
        "    os._exit(0)\n"
        "os.setsid()\n"
        "os.write(writing, b'x')\n"
        "time.sleep(60)"
    ),
    "stubborn": "import signal; print('up', flush=True); signal.pause()",
}


@pytest.fixture
def spec(tmp_path, monkeypatch):
    """Makes specs of nodes that run the little programs above."""
    library = tmp_path / "library"
    library.mkdir()
    for name, source in NODES.items():
        (library / f"node_{name}.py").write_text(source + "\n")
    monkeypatch.setenv("PYTHONPATH", str(library))

    def make(program, kind=Kind.AGGREGATOR, name="x"):
        module, log = f"node_{program}", tmp_path / "logs" / f"{name}.log"
        return NodeSpec(name, kind, module, ("--mark",), tmp_path / "home" / name, log)

    return make


def gone(pid: int) -> bool:
    """Wait, at most ten seconds, for a process to end."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 10)[0])
    finally:
        os.close(descriptor)


def test_a_node_sees_nothing_of_ours_but_the_allowed_variables(spec, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "t0ken")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    monkeypatch.setenv("LC_TIME", "C.UTF-8")
    happened = queue.SimpleQueue()
    with open(os.devnull) as leak:
        os.set_inheritable(leak.fileno(), True)
        Process(spec("looks"), happened.put)
        about = json.loads(happened.get(timeout=10).text)
    assert isinstance(happened.get(timeout=10), Exit)
    assert not {"SECRET_TOKEN", "https_proxy"} & set(about["env"])
    assert about["env"]["LC_TIME"] == "C.UTF-8"
    assert about["env"]["HOME"] == about["cwd"] != os.environ.get("HOME")
    assert about["env"]["PYTHONHASHSEED"] == "0" and about["env"]["OMP_NUM_THREADS"] == "1"
    assert about["fds"] == [0, 1, 2, 3], "3 is the listing of /proc/self/fd itself"
    assert about["leads"], "Ctrl-C must reach fx only"
    assert about["cwd"] not in about["path"] and "" not in about["path"]


def test_the_environment_is_an_allow_list(spec):
    outer = {"PATH": "/bin", "AWS_SECRET": "x", "HTTP_PROXY": "y", "LC_ALL": "C", "HOME": "/root"}
    made = environment(outer, spec("tells"))
    assert made["PATH"] == "/bin" and made["LC_ALL"] == "C"
    assert "AWS_SECRET" not in made and "HTTP_PROXY" not in made and made["HOME"] != "/root"


def test_closing_the_lifeline_ends_a_node(spec):
    happened = queue.SimpleQueue()
    node = Process(spec("tells"), happened.put)
    assert happened.get(timeout=10).text.split()[1] == b"--mark"
    node.stop()
    assert happened.get(timeout=10).code == 0


STUBBORN = """
import asyncio
from openfed.launch import lifeline
lifeline.END_S = 0.5
async def work(stop):
    print("up", flush=True)
    await stop.wait()
    await asyncio.Event().wait()
lifeline.watch_lifeline()
lifeline.run_until_stopped(work)
"""


def test_without_a_launcher_a_node_ends_whatever_it_is_in_the_middle_of():
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", STUBBORN], **pipes) as node:
        assert node.stdout.readline() == b"up\n"
        _, said = node.communicate(timeout=20)  # closes its standard input
        assert node.returncode == 1 and b"did not end by itself" in said


def test_a_node_that_does_not_listen_is_killed(spec):
    happened = queue.SimpleQueue()
    node = Process(spec("stubborn"), happened.put)
    assert happened.get(timeout=10).text == b"up\n"
    node.stop()
    node.wait(0.1)
    assert happened.get(timeout=10).code == -signal.SIGKILL


@pytest.mark.parametrize("kind", list(Kind))
def test_what_a_node_forked_and_left_behind_is_killed_and_nobody_waits_for_it(spec, kind):
    happened = queue.SimpleQueue()
    made = spec("forks", kind)
    node = Process(made, happened.put)
    line = happened.get(timeout=10) if kind != Kind.TASK else None
    assert happened.get(timeout=10).code == 0
    assert gone(int(line.text if line else made.log.read_bytes()))
    node.wait(5)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_pipe_that_another_session_holds_does_not_keep_a_node_alive(spec, kind):
    happened = queue.SimpleQueue()
    made = spec("escapes", kind)
    node = Process(made, happened.put)
    line = happened.get(timeout=10) if kind != Kind.TASK else None
    try:
        assert happened.get(timeout=10).code == 0
        node.wait(5)
    finally:
        os.kill(int(line.text if line else made.log.read_bytes()), signal.SIGKILL)


def test_nodes_end_when_their_launcher_is_killed(spec, tmp_path):
    script = tmp_path / "launcher.py"
    script.write_text(
        "import pathlib, queue\n"
        "from openfed.launch.processes import *\n"
        "q, root = queue.SimpleQueue(), pathlib.Path(__file__).parent\n"
        "spec = NodeSpec('x', Kind.AGGREGATOR, 'node_tells', (), root / 'h', root / 'x.log')\n"
        "node = Process(spec, q.put)\n"
        "print(q.get().text.decode().split()[0], flush=True)\n"
        "q.get(); q.get()\n"
    )
    spec("tells")
    launcher = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE)
    with launcher:
        assert launcher.stdout
        pid = int(launcher.stdout.readline())
        launcher.kill()
    assert gone(pid)


def test_a_log_stops_at_its_limit_and_the_writer_is_not_held_up():
    reading, writing = os.pipe()
    log = BytesIO()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb") as sink:
        sink.write(b"x" * 50_000)
        sink.close()
        copy(source, log, limit=1000)
    assert log.getvalue().startswith(b"x" * 1000 + b"\n[openfed] this log is full")
    assert len(log.getvalue()) < 1100


@pytest.mark.parametrize(
    ("kind", "code", "crashes", "lived", "wait"),
    [
        (Kind.TASK, 0, 0, 60.0, 0.0),  # its agent cancelled a task
        (Kind.TASK, -9, 0, 60.0, 0.0),
        (Kind.TASK, 1, 0, 0.5, 0.1),
        (Kind.TASK, 1, 3, 0.5, 0.8),  # a task process that dies young comes back later and later
        (Kind.TASK, 1, 50, 0.5, 10.0),
        (Kind.AGENT, -9, 0, 60.0, 0.2),
        (Kind.AGENT, -9, CRASHES_ALLOWED, 60.0, None),
        (Kind.AGENT, 3, 0, 60.0, None),  # it gave a reason: starting it again changes nothing
        (Kind.AGENT, 0, 0, 60.0, None),
        (Kind.AGGREGATOR, -11, 1, 60.0, 0.2),
        (Kind.AGGREGATOR, 1, 0, 60.0, None),
    ],
)
def test_who_is_started_again(kind, code, crashes, lived, wait):
    assert restart_after(kind, code, crashes, lived) == wait


def exits(nodes, most):
    found = []
    for news in nodes.news():
        if isinstance(news, Exit):
            found.append(news)
            if len(found) == most or not nodes.returns(news.name):
                return found
    return found


def test_a_killed_node_is_started_again_three_times_and_then_given_up(spec):
    nodes = Supervisor(Processes())
    nodes.start(spec("dies", Kind.AGENT))
    assert [e.code for e in exits(nodes, 10)] == [-9] * (CRASHES_ALLOWED + 1)
    nodes.stop()


def test_a_node_that_ends_with_an_answer_is_not_started_again(spec):
    nodes = Supervisor(Processes())
    nodes.start(spec("ends", Kind.AGENT))
    assert [e.code for e in exits(nodes, 10)] == [3]
    nodes.stop()


def test_a_task_process_learns_how_the_one_before_it_ended(spec):
    nodes = Supervisor(Processes())
    made = spec("again", Kind.TASK)
    nodes.start(made)
    assert [e.code for e in exits(nodes, 3)] == [-9, 0, 0]
    nodes.stop()
    told = made.log.read_text().splitlines()[:3]
    assert told == ["--mark", "--mark --previous-exit -9", "--mark --previous-exit 0"]


def test_after_finish_nobody_is_started_again(spec):
    nodes = Supervisor(Processes())
    nodes.finish()
    nodes.start(spec("dies", Kind.TASK))
    assert len(exits(nodes, 5)) == 1
    nodes.stop()


def test_an_agents_words_are_logged_and_passed_on(spec):
    happened = queue.SimpleQueue()
    made = spec("tells", Kind.AGENT)
    node = Process(made, happened.put)
    line = happened.get(timeout=10)
    node.stop()
    node.wait(5)
    assert isinstance(line, Line) and Path(made.log).read_bytes() == line.text
