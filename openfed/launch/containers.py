"""Nodes as Docker containers: who can see the data has no network, who has the network sees no
data.

Paths are mounted where they are on the host, so a node gets the same arguments as a process. Each
site has a network of its own on which only the aggregator answers: it is `internal`, and its bridge
has no address of this machine (`inhibit_ipv4`), so no service of the host can be reached through it
and no firewall rule is needed. A container's standard input is held here and closes with us, as for
a process; what is left when this process is killed is removed by `reaper`, which outlives it.
"""

import os
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.utils.socket import STDOUT, frames_iter
from requests.exceptions import RequestException

from openfed.errors import OpenFedError
from openfed.launch.consent import approve
from openfed.launch.health import check
from openfed.launch.images import node_image, task_image
from openfed.launch.places import Place, Reached
from openfed.launch.processes import (
    LOG_LIMIT,
    Exit,
    Kind,
    Line,
    Node,
    NodeSpec,
    Tell,
    put,
    settings,
)
from openfed.launch.sandbox import by_signal, data_paths
from openfed.plan.local import Local
from openfed.plan.lock import Lock
from openfed.plan.site import Container
from openfed.typing import Json
from openfed.workspace import Workspace

LABEL = "org.openfed.launch"
"""Of everything that a launch makes; its value is the launch's id."""

NETWORK = {"com.docker.network.bridge.inhibit_ipv4": "true"}
ALIAS = "aggregator"
"""What sites dial on their networks."""

PORT = 50051
"""Of an aggregator in a container, which has all ports to itself."""

ENGINE_S = 120.0
"""How long an engine that has gone, as when it is restarted, is waited for."""

CLOSING_S = 60.0
"""How long we wait until everything is removed."""

LIMITS = Container()
"""Where nobody sets any."""

RETRY_S = 0.2
SECOND = 10**9
"""In nanoseconds, as Docker counts; also one core."""
OFTEN = {"interval": 30 * SECOND, "timeout": 10 * SECOND}
TMP = "rw,nosuid,nodev,size=1g,mode=1777"
HIDDEN = "ro,size=4k,mode=0555"


@dataclass(frozen=True)
class Mounts:
    """Paths of the host that a container sees, and folders in them that it sees empty."""

    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    hidden: tuple[Path, ...] = ()

    def binds(self) -> list[str]:
        both = [(path, "ro") for path in self.read] + [(path, "rw") for path in self.write]
        return [f"{path}:{path}:{how}" for path, how in both if path.exists()]


def mounts(workspace: Workspace, spec: NodeSpec, run: Path, source: Json) -> Mounts:
    """What a node of this workspace needs to see of it, and no more.

    `run`: the run's folder; `source`: what the site's loader is handed.
    """
    root, cert = workspace.root, workspace.cert
    code = (root / "src", root / "requirements.txt")
    if spec.kind == Kind.TASK:
        seen, made = (*code, *data_paths(source, root)), spec.option("--initial")
        if made:
            return Mounts(seen, (Path(made),))
        exchange = Path(spec.option("--exchange"))
        return Mounts((*seen, exchange), (exchange / "out",))
    strangers = workspace.strangers(spec.name)
    read = (*code, root / "plan", root / "approved", cert)
    if spec.kind == Kind.AGENT:
        own = (run / "agents" / spec.name, Path(spec.option("--exchange")))
        return Mounts(read, (*own, cert / spec.name), strangers)
    apart = (run / "agents", run / "exchange")
    return Mounts(read, (run, workspace.root / "save", cert / spec.name), (*strangers, *apart))


ASKED = {
    Kind.AGGREGATOR: ("--port", str(PORT)),
    Kind.AGENT: ("--agent",),
    Kind.TASK: ("--task",),
}
"""How the engine finds out whether a node is at work: see `health`."""


class Containers:
    """Launches nodes as containers of one launch."""

    isolation = "container"

    def __init__(
        self,
        engine: Any,
        workspace: Workspace,
        sites: Mapping[str, Json],
        device: str,
        limits: Container = LIMITS,
    ) -> None:
        """`engine`: see `connected`; `sites`: what each site's loader is handed."""
        self.id, self.engine = secrets.token_hex(6), engine
        self._workspace, self._sites, self._device, self._limits = workspace, sites, device, limits
        self._user = limits.user or f"{os.getuid()}:{os.getgid()}"
        self._run = workspace.runs  # the initial model is made before there is a run
        self._networks: dict[str, Any] = {}
        self._reaper: subprocess.Popen[bytes] | None = None

    def open(self, run: Path) -> None:
        """Make a network for every site; what is left of it all goes when we do."""
        self._run = run
        for folder in ("agents", "exchange"):
            (run / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._workspace.root / "save").mkdir(exist_ok=True)
        self._watch()
        for name in self._sites:
            self._networks[name] = self.engine.networks.create(
                f"openfed-{self.id}-{name}",
                driver="bridge",
                internal=True,
                options=NETWORK,
                labels={LABEL: self.id},
            )

    def _watch(self) -> None:
        if self._reaper is None:
            command = [sys.executable, "-P", "-m", "openfed.launch.reaper", self.id]
            self._reaper = subprocess.Popen(
                command, stdin=subprocess.PIPE, start_new_session=True, stdout=subprocess.DEVNULL
            )

    def close(self) -> None:
        """Remove everything that was started."""
        if self._reaper is not None:
            assert self._reaper.stdin
            self._reaper.stdin.close()
            with suppress(subprocess.TimeoutExpired):  # the engine has gone; it waits for it
                self._reaper.wait(CLOSING_S)
            self._reaper = None

    def start(self, spec: NodeSpec, tell: Tell) -> Node:
        self._watch()
        return Running(self._create(spec), spec, tell)

    def _create(self, spec: NodeSpec) -> Any:
        """The container, not yet started, once the engine can make it."""
        end = time.monotonic() + ENGINE_S
        while True:
            try:
                return self._created(spec)
            except AWAY:
                if time.monotonic() > end:
                    raise
                time.sleep(RETRY_S)

    def _created(self, spec: NodeSpec) -> Any:
        task = spec.kind == Kind.TASK
        image = task_image(self._workspace) if task else node_image()
        name = f"openfed-{self.id}-{re.sub(r'[. ]', '-', spec.name)}"
        with suppress(docker.errors.NotFound):  # the one before, which ended
            self.engine.containers.get(name).remove(force=True)
        try:
            made = self.engine.containers.create(image, name=name, **self._options(spec))
        except docker.errors.ImageNotFound:
            message = f"there is no image {image}"
            raise OpenFedError("L02", f"{message}: fx workspace dockerize builds it") from None
        if spec.kind == Kind.AGGREGATOR:
            for network in self._networks.values():
                with suppress(docker.errors.APIError):  # the one that it was made in, without alias
                    network.disconnect(made)
                network.connect(made, aliases=[ALIAS])
        return made

    def _options(self, spec: NodeSpec) -> dict[str, Any]:
        seen = mounts(self._workspace, spec, self._run, self._sites.get(spec.site))
        for path in seen.write:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        task = spec.kind == Kind.TASK
        limits = self._limits
        return {
            "command": ["python", "-P", "-m", spec.module, *spec.arguments],
            "user": self._user,
            "environment": {**settings(spec), "HOME": "/tmp"},
            "labels": {LABEL: self.id, f"{LABEL}.node": spec.name},
            "volumes": seen.binds(),
            "tmpfs": {"/tmp": TMP, **{str(path): HIDDEN for path in seen.hidden if path.exists()}},
            "network_mode": self._network(spec),
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "pids_limit": limits.pids,
            "mem_limit": limits.memory,
            "memswap_limit": limits.memory,
            "nano_cpus": int((limits.cpus or spec.threads) * SECOND) if task else None,
            "sysctls": {} if task else {"net.ipv4.ip_forward": "0"},
            "device_requests": self._gpus() if task else None,
            "healthcheck": {"test": check(*ASKED[spec.kind]), **OFTEN},
            "stdin_open": True,  # and closed once we let go of it, as we are attached
            "log_config": {"type": "none"},
        }

    def _network(self, spec: NodeSpec) -> str:
        if spec.kind == Kind.TASK:
            return "none"
        first = next(iter(self._networks))
        return str(self._networks[spec.name if spec.kind == Kind.AGENT else first].name)

    def _gpus(self) -> list[Any] | None:
        if not self._device.startswith("cuda"):
            return None
        one = self._device.partition(":")[2]
        which = {"device_ids": [one]} if one else {"count": -1}
        return [docker.types.DeviceRequest(capabilities=[["gpu"]], **which)]


def connected() -> Any:
    """A client of the engine. Raises: OpenFedError L01: none answers."""
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        raise OpenFedError("L01", f"no Docker engine answers: {error}") from None
    return client


AWAY = (RequestException, ConnectionError)
"""What is raised while the engine is away."""


class Running:
    """A node that runs in a container."""

    def __init__(self, container: Any, spec: NodeSpec, tell: Tell) -> None:
        self.spec, self._tell, self._container = spec, tell, container
        self._born = time.monotonic()
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        wanted = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        self._stream = container.attach_socket(params=wanted)
        self._socket = self._stream._sock  # the stream has none once it is closed
        container.start()
        self._watcher = threading.Thread(target=self._watch, name=spec.name, daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)  # its standard input ends

    def wait(self, grace_s: float) -> None:
        self._watcher.join(grace_s)
        if self._watcher.is_alive():
            with suppress(Exception):  # it has ended by itself, or the engine has gone
                self._container.kill()
            self._watcher.join()

    def _watch(self) -> None:
        with suppress(OSError):  # the engine has gone; how the container ended is asked below
            self._pass_on()
        code = self._ended()
        self._stream.close()
        self._tell(Exit(self.spec.name, code, time.monotonic() - self._born))

    def _pass_on(self) -> None:
        """What the node prints: to its log and, line by line, to who listens."""
        kind, rest = self.spec.kind, b""
        with self.spec.log.open("ab") as log:
            room = LOG_LIMIT - log.tell()
            for stream, data in frames_iter(self._stream, tty=False):
                events = kind == Kind.AGGREGATOR and stream == STDOUT
                if not events:
                    room = put(log, data, room)
                if events or kind == Kind.AGENT:
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self._tell(Line(self.spec.name, line + b"\n"))
        if rest:
            self._tell(Line(self.spec.name, rest))

    def _ended(self) -> int:
        """How it ended: negative when by a signal. An engine that is away is waited for."""
        end = time.monotonic() + ENGINE_S
        while True:
            try:
                return by_signal(int(self._container.wait()["StatusCode"]))
            except docker.errors.NotFound:
                return -9
            except AWAY:
                if time.monotonic() > end:
                    return -9
                time.sleep(RETRY_S)


class Engine:
    """The place of containers, on this machine's Docker engine."""

    def __init__(self, engine: Any, workspace: Workspace, local: Local) -> None:
        self._workspace, self._sites = workspace, local.sites
        self.launcher = Containers(engine, workspace, local.sites, local.device)

    def open(self, lock: Lock, run: Path) -> Reached:
        """Also approves the plan for every site: in a trial they are all on this machine, and a
        container does not see the authority, which would tell it that it is a trial."""
        for name in self._sites:
            approve(self._workspace, lock, name, time.time())
        self.launcher.open(run)
        return Reached(f"0.0.0.0:{PORT}", f"{ALIAS}:{PORT}", lock.advertise[0])


@contextmanager
def in_containers(workspace: Workspace, local: Local) -> Iterator[Place]:
    """Every node a container. Raises: OpenFedError L01: no engine answers."""
    with closing(connected()) as engine:
        place = Engine(engine, workspace, local)
        try:
            yield place
        finally:
            place.launcher.close()
