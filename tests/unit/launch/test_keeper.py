"""A task process in a container of its own: started with the agent, ended with the run."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from openfed.files import lock_file, write_whole
from openfed.launch import keeper as module
from openfed.launch.health import accepts, connected, listens
from openfed.launch.keeper import LOOK_S, TOLD, Apart, held, keep, started
from openfed.launch.processes import Kind, NodeSpec


class Keeper:
    """`keep`, in a thread, with sleeping children; `began`: (process, previous exit)."""

    def __init__(self, exchange: Path) -> None:
        self.began: queue.SimpleQueue = queue.SimpleQueue()
        self.thread = threading.Thread(target=keep, args=(exchange, self.start), daemon=True)
        self.thread.start()

    def start(self, exchange: Path, previous: int | None) -> subprocess.Popen[bytes]:
        line = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"
        process = subprocess.Popen(
            [sys.executable, "-c", line], stdin=subprocess.PIPE, start_new_session=True
        )
        self.began.put((process, previous))
        return process

    def next(self):
        return self.began.get(timeout=30)

    def starts_nothing(self) -> bool:
        with pytest.raises(queue.Empty):
            self.began.get(timeout=3 * LOOK_S)
        return True


@pytest.fixture
def told(tmp_path) -> Path:
    return tmp_path / TOLD


@pytest.fixture
def keeper(tmp_path):
    return Keeper(tmp_path)


def test_a_task_process_starts_with_what_the_agent_at_work_has_written(told, keeper) -> None:
    assert keeper.starts_nothing()
    write_whole(told, b"of an agent that is gone")
    assert keeper.starts_nothing()
    write_whole(told, b"of this one")
    agent = lock_file(told, wait=True)
    process, previous = keeper.next()
    assert previous is None
    told.unlink()
    os.close(agent)
    keeper.thread.join(30)
    assert not keeper.thread.is_alive()
    assert process.wait(5) == -signal.SIGKILL


def test_one_that_dies_is_started_again_and_its_successor_knows_how(told, keeper) -> None:
    write_whole(told, b"x")
    agent = lock_file(told, wait=True)
    first, _ = keeper.next()
    os.killpg(first.pid, signal.SIGKILL)
    second, previous = keeper.next()
    assert previous == -signal.SIGKILL and first.poll() == -signal.SIGKILL
    os.close(agent)  # it dies; its socket closes, and with that the task process ends
    os.killpg(second.pid, signal.SIGTERM)
    assert keeper.starts_nothing()
    write_whole(told, b"of the agent that comes back")
    agent = lock_file(told, wait=True)
    _, previous = keeper.next()
    assert previous == -signal.SIGTERM
    told.unlink()
    keeper.thread.join(30)
    assert not keeper.thread.is_alive()
    os.close(agent)


def test_what_a_task_process_leaves_behind_goes_with_it(tmp_path, told) -> None:
    write_whole(told, b"x")
    agent = lock_file(told, wait=True)
    keeper = Keeper(tmp_path)
    process, _ = keeper.next()
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    end = time.monotonic() + 20
    while not (left := listed.read_text().split()):
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    keeper.next()[0].kill()
    while Path(f"/proc/{left[0]}/stat").exists():
        if Path(f"/proc/{left[0]}/stat").read_text().split()[2] == "Z":
            break
        assert time.monotonic() < end
        time.sleep(0.01)
    told.unlink()
    os.close(agent)
    keeper.thread.join(30)
    assert not keeper.thread.is_alive()


def test_a_real_task_process_gets_a_lifeline_and_no_secret(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TOKEN", "secret")
    process = started(tmp_path, -9)
    try:
        end = time.monotonic() + 20
        while not (command := Path(f"/proc/{process.pid}/cmdline").read_bytes()):
            assert time.monotonic() < end
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"--previous-exit\x00-9" in command
        assert b"HOME=" in environment and b"secret" not in environment
        assert os.readlink(f"/proc/{process.pid}/fd/0").startswith("pipe:")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()


def test_a_link_in_the_exchange_is_not_followed(tmp_path, told) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    told.symlink_to(elsewhere)
    agent = lock_file(elsewhere, wait=True)
    assert not held(told)
    os.close(agent)


def test_the_agents_side_holds_the_file_until_it_stops(tmp_path, told) -> None:
    write_whole(told, b"x")
    arguments = ("--exchange", str(tmp_path))
    spec = NodeSpec("mill.task", Kind.TASK, "no.module", arguments, tmp_path, tmp_path / "log")
    assert not held(told)
    node = Apart().start(spec, lambda news: None)
    assert held(told)
    node.stop()
    node.stop()
    node.wait(0)
    assert not held(told)


def test_health_is_read_from_the_kernels_tables(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listens(port)
        with socket.create_connection(("127.0.0.1", port)):
            pass
    assert not listens(port)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        assert not accepts(table(tmp_path, path))
        server.listen()
        assert accepts(table(tmp_path, path)) and not connected(table(tmp_path, path))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            accepted, _ = server.accept()
            assert connected(table(tmp_path, path))
            accepted.close()
    assert not accepts(tmp_path / "none")


def table(folder: Path, path: str) -> Path:
    """A `/proc/net` with the sockets of one path alone: this machine has others."""
    head, *lines = Path("/proc/net/unix").read_text().splitlines()
    mine = [line for line in lines if line.endswith(path)]
    assert mine
    (folder / "unix").write_text("\n".join([head, *mine]) + "\n")
    return folder


def test_a_run_that_ends_just_after_its_task_process_ends_the_keeper_too(
    told, tmp_path, monkeypatch
) -> None:
    """The agent closes the socket first, then says that the run has ended."""
    write_whole(told, b"x")
    agent = lock_file(told, wait=True)

    def ended_meanwhile(*_: object) -> float:
        told.unlink()
        os.close(agent)
        return 0.0

    monkeypatch.setattr(module, "restart_after", ended_meanwhile)
    start = lambda exchange, previous: subprocess.Popen([sys.executable, "-c", ""])  # noqa: E731
    keeping = threading.Thread(target=keep, args=(tmp_path, start), daemon=True)
    keeping.start()
    keeping.join(30)
    assert not keeping.is_alive()
