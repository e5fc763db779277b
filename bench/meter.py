"""What processes cost: CPU time, memory, bytes over the loopback device. Linux only."""

import ctypes
import fcntl
import os
import socket
import statistics
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
GB = 1e9


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its threads so far; 0 when it is gone.

    Read from the process's own clock (nanoseconds); /proc/PID/stat counts in hundredths.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of linux/posix-timers.h
    except OSError:
        return 0.0


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and of those children of it that have ended; hundredths of a second.

    Summed over all that live, it misses nothing of processes that came and went in between.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    times = stat.rpartition(")")[2].split()[11:15]  # utime, stime, cutime, cstime
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def children(pids: Iterable[int]) -> set[int]:
    """Those processes and all that descend from them."""
    parents = dict(_parents())
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _parents() -> list[tuple[int, int]]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:
                continue
            found.append((int(folder.name), int(stat.rpartition(")")[2].split()[1])))
    return found


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def peak_mb(pid: int) -> float:
    """Most resident memory that a process had so far, in MiB; 0 when it is gone."""
    return _status(pid, "VmHWM")


def anonymous_mb(pid: int) -> float:
    """What of its resident memory is not pages of files, in MiB."""
    return _status(pid, "RssAnon")


def rss_mb(pid: int) -> float:
    """Resident memory now, in MiB."""
    return _status(pid, "VmRSS")


def descriptors(pid: int) -> int:
    """Open file descriptors now."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def _status(pid: int, key: str) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)


def alone_on_the_network() -> bool:
    """Give this process, and what it starts, a loopback device of its own: bytes can be counted.

    Returns: whether that was allowed (it takes root).
    """
    if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
        return False
    with socket.socket() as any_socket:
        up = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    return True


def loopback_bytes() -> int:
    """Bytes that were sent over the loopback device, with all headers."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[8])
    return 0


@dataclass(frozen=True)
class Mark:
    """What had been used at one moment."""

    wall: float
    cpu: float
    wire: int


def mark(pids: Iterable[int]) -> Mark:
    return Mark(time.perf_counter(), sum(map(cpu_seconds, pids)), loopback_bytes())


def between(marks: Sequence[Mark]) -> list[Mark]:
    """What was used from each mark to the next."""
    return [
        Mark(after.wall - before.wall, after.cpu - before.cpu, after.wire - before.wire)
        for before, after in zip(marks, marks[1:], strict=False)
    ]


def median(values: Iterable[float]) -> float:
    return statistics.median(list(values))


def best(work: Callable[[], object], repeat: int = 5) -> float:
    """Fewest CPU-seconds of `repeat` calls on this thread, after one to warm up."""
    work()
    taken = []
    for _ in range(repeat):
        begun = time.thread_time()
        work()
        taken.append(time.thread_time() - begun)
    return min(taken)


def cores() -> int:
    return len(os.sched_getaffinity(0))
