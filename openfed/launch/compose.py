"""`fx workspace compose`: the services of a site that runs its node itself, as a Compose file.

The file is good for Docker Compose v2 and for docker-compose 1.29. All its paths are relative to
it; in the containers the workspace is at `/workspace`. What is in the plan is read when a service
starts, so that a new plan needs a new file only where it asks for another task image.
"""

import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from openfed.errors import CertificateError, UsageError
from openfed.files import write_whole
from openfed.launch.health import check
from openfed.launch.images import node_image, task_image
from openfed.launch.sandbox import data_paths, texts
from openfed.launch.single import dialable
from openfed.launch.sites import SITE, local_of, site_of
from openfed.parse import join_address, split_address
from openfed.pki.peer import AGGREGATOR
from openfed.plan.local import check_named
from openfed.plan.site import USER, Container, Site
from openfed.typing import Json
from openfed.workspace import Workspace

FILE = "compose.yaml"
INSIDE = PurePosixPath("/workspace")
OWN = "# Written by fx workspace compose "
"""How a file begins that may be written anew."""

OPEN_FILES = 4096
"""Of the aggregator, at most; a connection is one."""

HIDDEN = "ro,size=4k,mode=0555"
TMP = "size=1g,mode=1777"
SHARED_MEMORY = "1g"
"""Of a task: loaders with workers pass their batches through it."""

Service = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """`notes`: what the operator should know before it is started."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def compose_aggregator(workspace: Workspace, user: str | None = None) -> Written:
    """Write the file of the aggregator. `user`: UID:GID.

    Raises: UsageError: U17 no port, U88 the file is another's, U89 the user cannot read the keys.
    CertificateError C12: there are no keys yet.
    """
    lock = dialable(workspace)
    chosen = _runs_as(workspace, AGGREGATOR, user)
    folders = (workspace.root / "save", workspace.runs, workspace.logs)
    limits = Container(user=chosen, cpus=1.0)
    code, others = _code(workspace), _others(workspace, AGGREGATOR)
    text = aggregator_text(node_image(), lock.listen, code, others, limits)
    return _write(workspace, text, folders, chosen)


def compose_collaborator(workspace: Workspace, name: str, user: str | None = None) -> Written:
    """Write the file of a collaborator: its agent and its task process. `user`: UID:GID.

    Raises: UsageError: U16 no site of this name here, U17 no port, U88 the file is another's, U89
    the user cannot read the keys. CertificateError C12: there are no keys yet. PolicyError R37: the
    data cannot be shown without what is the site's own.
    """
    lock, site = dialable(workspace), site_of(workspace)
    check_named(lock.plan, name)
    if site is None:
        message = f"expected {SITE}, which says where the data of {name!r} is, found none"
        raise UsageError("U16", f"{message}: fx collaborator create -n {name} -d DATA")
    local_of(site, name)
    chosen = _runs_as(workspace, name, user or site.container.user)
    data, images = data_mounts(workspace.root, site.data), (node_image(), task_image(workspace))
    text = collaborator_text(site, chosen, images, _code(workspace), _others(workspace, name), data)
    exchange = workspace.runs / "exchange" / name
    folders = (workspace.root / "approved", workspace.logs, workspace.runs, exchange)
    return _write(workspace, text, folders, chosen, () if data else (NO_DATA,))


NO_DATA = "nothing that site.yaml says of its data is a path here: no data is mounted"
AS_ROOT = "it runs as root, as whom this workspace belongs to: --user UID:GID, or chown it"


def owner(root: Path) -> str:
    """UID:GID of whom the workspace belongs to."""
    found = root.stat()
    return f"{found.st_uid}:{found.st_gid}"


def _runs_as(workspace: Workspace, name: str, user: str | None) -> str:
    """UID:GID. Keys are for their owner alone, and a service has no right to read another's."""
    user = user or owner(workspace.root)
    if not USER.fullmatch(user):
        raise UsageError("U89", f"--user: expected numbers as in 1000:1000, UID:GID, got {user!r}")
    key = workspace.cert / name / "node.key"
    if not key.exists():
        raise CertificateError("C12", f"{key} is missing: the keys of {name} are made first")
    uid = key.stat().st_uid
    if user.partition(":")[0] != str(uid):
        message = f"{key} belongs to user {uid}, and the services are to run as {user}"
        raise UsageError(
            "U89", f"{message}: sudo chown -R {user} {shlex.quote(str(workspace.root))}"
        )
    return user


def _code(workspace: Workspace) -> tuple[str, ...]:
    """What plan.lock has digests of."""
    return tuple(n for n in ("src", "requirements.txt") if (workspace.root / n).exists())


def _others(workspace: Workspace, name: str) -> tuple[str, ...]:
    return tuple(path.name for path in workspace.strangers(name))


def _write(
    workspace: Workspace, text: str, folders: Iterable[Path], user: str, notes: tuple[str, ...] = ()
) -> Written:
    path = workspace.root / FILE
    if path.exists() and not path.read_text(errors="replace").startswith(OWN):
        message = f"{path} is there, and openfed has not written it: it was left as it is"
        raise UsageError("U88", message)
    for folder in folders:  # Docker would make them, and root's
        _make(folder, user)
    write_whole(path, text.encode())
    _give(path, user)
    as_root = (AS_ROOT,) if user.startswith("0:") else ()
    return Written((path,), (*notes, *as_root))


def _make(folder: Path, user: str) -> None:
    for path in reversed((folder, *folder.parents)):
        if not path.exists():
            path.mkdir(mode=0o700)
            _give(path, user)


def _give(path: Path, user: str) -> None:
    if os.geteuid() == 0:
        uid, _, gid = user.partition(":")
        os.chown(path, int(uid), int(gid))


# -- the data -------------------------------------------------------------------------------------


def data_mounts(root: Path, source: Json) -> dict[str, str]:
    """Path on the host (relative ones: to the workspace) -> path in the task's container, of what a
    site's source names: its text, or texts inside it. The loader is handed the source unchanged.

    Raises: PolicyError R37: one would show the task what is the site's own.
    """
    found = dict[str, str]()
    for text in texts(source):
        for path in data_paths(text, root):
            within = os.path.relpath(path, root)
            on_host = within if within.startswith("..") else f"./{within}"
            inside = os.path.normpath(INSIDE / within)
            found |= {str(path): str(path)} if os.path.isabs(text) else {on_host: inside}
    return found


# -- the file -------------------------------------------------------------------------------------


def aggregator_text(
    image: str, listen: str, code: tuple[str, ...], others: tuple[str, ...], limits: Container
) -> str:
    """The whole file. `others`: folders below `cert/` that it must not see."""
    port = split_address(listen)[1]
    inside = join_address("::" if listen.startswith("[") else "0.0.0.0", port)
    service = {
        **_common(image, ("openfed", "aggregator", "start", "--listen", inside), limits),
        "ports": [_published(listen)],
        "volumes": _binds(("plan", *code)) + _binds(("cert", "save", "runs", "logs"), write=True),
        "tmpfs": _tmpfs(others),
        "ulimits": {"nofile": OPEN_FILES},
        "healthcheck": _health("--port", str(port)),
        "networks": [AGGREGATOR],
    }
    network = {AGGREGATOR: _network(MASQUERADE)}
    return _file("--role aggregator", ABOUT_AGGREGATOR, {AGGREGATOR: service}, network)


def collaborator_text(
    site: Site,
    user: str,
    images: tuple[str, str],
    code: tuple[str, ...],
    others: tuple[str, ...],
    data: Mapping[str, str],
) -> str:
    """The whole file. `images`: of the agent and of the task; `others`: folders below `cert/` that
    the agent must not see; `data`: what of the host is mounted where in the task's container."""
    name, cpus = site.name, site.container.cpus or float(site.threads)
    limits = site.container.model_copy(update={"user": user, "cpus": cpus})
    exchange, inside = f"runs/exchange/{name}", str(INSIDE / "runs/exchange" / name)
    kept = {str(INSIDE / each) for each in code}
    start = ("openfed", "collaborator", "start", "-n", name, "--without-task")
    agent = {
        **_common(images[0], start, limits),
        "depends_on": [f"{name}-task"],
        "volumes": _binds(("plan", *code, SITE, "approved"))
        + _binds(("cert", "runs", "logs"), write=True),
        "tmpfs": _tmpfs(others),
        "healthcheck": _health("--agent"),
        "networks": [name],
    }
    task = {
        **_common(images[1], ("openfed.launch.keeper", "--exchange", inside), limits),
        "volumes": _binds(code)
        + [_bind(host, there) for host, there in data.items() if there not in kept]
        + _binds((exchange,), write=True),
        "tmpfs": _tmpfs(()),
        "shm_size": SHARED_MEMORY,
        "healthcheck": _health("--task"),
        "network_mode": "none",
        **_gpu(site.device),
    }
    role = f"--role collaborator -n {name}"
    services = {name: agent, f"{name}-task": task}  # other sites on this machine have others
    return _file(role, ABOUT_COLLABORATOR, services, {name: _network(ALONE)})


def _common(image: str, module: tuple[str, ...], limits: Container) -> Service:
    return {
        "image": image,
        "command": ["python", "-P", "-m", *module],
        "init": True,  # children of children are reaped, and the signal to stop is heard
        "working_dir": str(INSIDE),
        "user": limits.user,
        "restart": "on-failure",
        "stop_grace_period": "30s",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "mem_limit": _bytes(limits.memory),
        "memswap_limit": _bytes(limits.memory),  # no swap
        "cpus": limits.cpus,
        "pids_limit": limits.pids,
        "logging": {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}},
    }


def _bytes(size: int) -> str:
    gibibytes, rest = divmod(size, 1 << 30)
    return f"{size}b" if rest else f"{gibibytes}g"


def _published(listen: str) -> str:
    """For `ports`: on every address of the host, or on the one that the plan says."""
    host, port = split_address(listen)
    everywhere = host in ("0.0.0.0", "::")
    return f"{port}:{port}" if everywhere else f"{join_address(host, port)}:{port}"


def _binds(names: Iterable[str], *, write: bool = False) -> list[Service]:
    return [_bind(f"./{name}", str(INSIDE / name), write=write) for name in names]


def _bind(source: str, target: str, *, write: bool = False) -> Service:
    read_only = {} if write else {"read_only": True}
    return {"type": "bind", "source": source, "target": target, **read_only}


def _tmpfs(others: Iterable[str]) -> list[str]:
    return [f"/tmp:{TMP}", *(f"{INSIDE / 'cert' / name}:{HIDDEN}" for name in others)]


def _health(*asked: str) -> Service:
    return {
        "test": check(*asked),
        "interval": "30s",
        "timeout": "10s",
        "retries": 3,
        "start_period": "60s",
    }


def _gpu(device: str) -> Service:
    """The one that `site.yaml` names, or all: `auto` is none in a container."""
    if not device.startswith("cuda"):
        return {}
    driver = {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [driver]}}}}


MASQUERADE = {"com.docker.network.bridge.enable_ip_masquerade": "false"}
"""Who connects is answered; nobody outside is connected to."""

ALONE = {"com.docker.network.bridge.enable_icc": "false"}

ABOUT_AGGREGATOR = """\
# The service sees of cert/ what is public and its own keys, never the authority's. Connections are
# limited all together, by `nofile`. By address Compose cannot limit them: that takes a firewall.
"""

ABOUT_COLLABORATOR = """\
# The task service sees the data and has no network. The agent has the network and the keys, and
# sees no data; nobody else is on its network. Compose cannot let it reach the aggregator's address
# alone: that takes a firewall, such as a rule in Docker's chain DOCKER-USER.
"""

HEAD = f"""\
{OWN}%s
# The same command writes it anew. Your own changes belong in compose.override.yaml: Compose reads
# it after this file, and openfed never writes it.
#
#   docker compose up -d       start, also after a reboot; it ends when the plan's run has ended
#   docker compose logs -f     what happens
#   docker compose down        stop; the next start resumes the run
#
"""


def _network(options: Mapping[str, str]) -> dict[str, Any]:
    return {"driver": "bridge", "driver_opts": dict(options)}


def _file(role: str, about: str, services: Service, networks: Mapping[str, Any]) -> str:
    body = {"services": services, "networks": networks}
    return HEAD % role + about + "\n" + "\n".join(_yaml(body)) + "\n"


def _yaml(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of a mapping; every text that could be read as something else is in quotes."""
    for key, each in value.items():
        if isinstance(each, dict):
            yield f"{indent}{key}:"
            yield from _yaml(each, indent + "  ")
        elif isinstance(each, list) and any(isinstance(item, dict) for item in each):
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_flow(item)}" for item in each)
        else:
            yield f"{indent}{key}: {_flow(each)}"


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value).replace("$", "$$")  # Compose would put a variable in its place
