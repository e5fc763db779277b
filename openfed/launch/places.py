"""Where the nodes of `fx run` live; `containers` has another place."""

import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openfed.launch.processes import Launcher
from openfed.launch.sandbox import launcher
from openfed.parse import join_address, split_address
from openfed.plan.local import Local
from openfed.plan.lock import Lock
from openfed.workspace import Workspace


@dataclass(frozen=True)
class Reached:
    """How an aggregator is reached. `server_name`: the name in its certificate, if sites dial
    another."""

    listen: str
    address: str
    server_name: str = ""


class Place(Protocol):
    @property
    def launcher(self) -> Launcher: ...

    def open(self, lock: Lock, run: Path) -> Reached:
        """Get ready for the nodes of a run, whose folder is `run`."""
        ...


Placed = Callable[[Workspace, Local], AbstractContextManager[Place]]
"""Gives the place of a workspace's nodes; what was started there is gone when the block ends."""


class Host:
    """Child processes of this one."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def open(self, lock: Lock, run: Path) -> Reached:
        listen = with_port(lock.listen)
        return Reached(listen, dialled(lock.advertise[0], listen))


def with_port(listen: str) -> str:
    """`listen`, with a free port where it says 0."""
    host, port = split_address(listen)
    if port:
        return listen
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return join_address(host, probe.getsockname()[1])


def dialled(host: str, listen: str) -> str:
    """What collaborators dial: an advertised host, at the port that the aggregator listens on."""
    return join_address(host, split_address(listen)[1])


@contextmanager
def on_this_machine(workspace: Workspace, local: Local) -> Iterator[Place]:
    """Every node a process; those that see data at the level that local.yaml asks for."""
    yield Host(launcher(workspace, local.sites, local.device, local.isolation))
