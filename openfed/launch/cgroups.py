"""Control groups: how much memory and how many processes a task process and all that it starts have
together, where this user may say so. Both versions of the kernel's interface."""

import time
from collections.abc import Iterator, Mapping
from os import W_OK, access
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
NEEDED = ("memory", "pids")
GONE_S = 0.5


def parents(own: str, mount: Path = MOUNT) -> Mapping[str, Path]:
    """Controller -> the group in which this user may make groups; empty: not for all of `NEEDED`.

    `own`: what /proc/self/cgroup says.
    """
    if (mount / "cgroup.controllers").exists():
        found = dict.fromkeys(NEEDED, place) if (place := _unified(own, mount)) else {}
    else:
        found = {name: path for name, path in _older(own, mount) if access(path, W_OK)}
    return found if set(found) == set(NEEDED) else {}


def _unified(own: str, mount: Path) -> Path | None:
    """Version 2: beside our own group (a group with processes has no limited groups in it), or at
    the top."""
    path = next((line[3:] for line in own.splitlines() if line.startswith("0::")), "/")
    for place in ((mount / path.lstrip("/")).parent if path != "/" else mount, mount):
        passed_on = place / "cgroup.subtree_control"
        given = passed_on.read_text().split() if passed_on.exists() else []
        if access(place, W_OK) and set(NEEDED) <= set(given):
            return place
    return None


def _older(own: str, mount: Path) -> Iterator[tuple[str, Path]]:
    """Version 1: inside our own group of each hierarchy."""
    for line in own.splitlines():
        _, names, path = line.split(":", 2)
        for name in set(names.split(",")) & set(NEEDED):
            yield name, mount / names / path.lstrip("/")


def here() -> Mapping[str, Path]:
    """`parents` of this process."""
    try:
        return parents(Path("/proc/self/cgroup").read_text())
    except OSError:
        return {}


def make(where: Mapping[str, Path], name: str, memory: int, processes: int) -> tuple[Path, ...]:
    """The groups called `name`, limited; a process enters by its number in their `cgroup.procs`.

    Raises: OSError.
    """
    made = {controller: parent / name for controller, parent in where.items()}
    for folder in made.values():
        folder.mkdir(exist_ok=True)
    new = made["memory"] / "memory.max"
    limit = new if new.exists() else made["memory"] / "memory.limit_in_bytes"
    limit.write_text(str(memory))
    (made["pids"] / "pids.max").write_text(str(processes))
    return tuple(dict.fromkeys(made.values()))


def remove(groups: tuple[Path, ...]) -> None:
    """Once their processes are gone, which the kernel takes a moment for. What stays in use stays:
    it has the same name the next time."""
    end = time.monotonic() + GONE_S
    for group in groups:
        while group.exists():
            try:
                group.rmdir()
            except OSError:
                if time.monotonic() > end:
                    return
                time.sleep(0.002)
