"""Task processes behind walls that hold against hostile code, without containers.

bubblewrap (`bwrap`) starts a task process in namespaces of its own: no network at all, no other
processes, and of the file system only what it needs, at the paths where it is; everything else does
not exist there. It runs as the user that started it, without capabilities. Inside, `tasks/confine`
puts up the rest: Landlock where the kernel has it, and limits. A control group holds memory and
processes where this user may make one.

Without bubblewrap there is no sandbox: Landlock alone leaves UDP and the sockets of other programs.
"""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import openfed
from openfed.errors import PolicyError
from openfed.launch import cgroups
from openfed.launch.processes import (
    Exit,
    Kind,
    Launcher,
    Line,
    Node,
    NodeSpec,
    Process,
    Processes,
    Tell,
)
from openfed.plan.local import Isolation
from openfed.plan.site import Site
from openfed.tasks.confine import landlock_abi
from openfed.typing import Json
from openfed.workspace import Workspace

NAMESPACES = (
    *("--unshare-user", "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts"),
    *("--unshare-cgroup-try", "--hostname", "task"),
    *("--die-with-parent", "--new-session", "--cap-drop", "ALL"),
)
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Programs and libraries: the same for everybody on the machine."""

SETTINGS = (
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives"),
    *(
        "/etc/localtime",
        "/etc/nsswitch.conf",
        "/sys/devices/system/cpu",
        "/sys/devices/system/node",
    ),
)
"""What libraries read when they are loaded."""

DEVICES = "/dev/nvidia*"
OWN = ("cert", "runs", "logs", "save", "approved", "site.yaml", "local.yaml")
"""What of a workspace no data may lie in, and no data may contain."""

ENTERED = (
    "echo 1000 > /proc/self/oom_score_adj; "
    'while [ "$1" != -- ]; do echo $$ > "$1" || exit 97; shift; done; shift; exec "$@"'
)
"""For sh: be the first to go when the machine has no memory left, enter control groups, become the
command."""

PACKAGES = ("site-packages", "dist-packages")
CONFINE = "openfed.tasks.confine"
PROBE_S = 10.0
MOST_OF_MEMORY = 0.9
FILE_SIZE = 1 << 40
"""Most bytes of one file that a task writes; the model's frame is one."""


@dataclass(frozen=True)
class Limits:
    """Of a task process and all that it starts. `memory`: bytes, None: 9/10 of the machine's."""

    memory: int | None = None
    pids: int = 512

    @property
    def bytes(self) -> int:
        """Of memory."""
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return self.memory or int(there * MOST_OF_MEMORY)


def limits_of(site: Site | None) -> Limits:
    """The site's own: those for its containers, where site.yaml has any."""
    if site is None or "container" not in site.model_fields_set:
        return Limits()
    return Limits(site.container.memory, site.container.pids)


# -- what can be had ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Walls:
    """What this machine has to build a sandbox of."""

    bwrap: str  # its path
    version: str  # "bubblewrap 0.8.0"
    options: frozenset[str]  # those of OPTIONS that it has
    landlock: int  # the ABI; 0: none
    groups: Mapping[str, Path]  # parents of control groups; empty: none

    @property
    def words(self) -> str:
        """For people: what the sandbox is made of."""
        inner = f"Landlock {self.landlock}" if self.landlock else "no Landlock"
        limits = "control group" if self.groups else "limits of each process"
        return f"sandbox ({self.version}, {inner}, {limits})"

    @property
    def gaps(self) -> Iterator[str]:
        """What a sandbox on this machine lacks."""
        if not self.landlock:
            yield "the kernel has no Landlock: the namespaces are the only wall around files"
        if not self.groups:
            who = "memory is limited for each process, not for a task as a whole nor what it shares"
            yield f"no control group can be made: {who}" + (
                ", and the number of processes not at all for root" if os.getuid() == 0 else ""
            )


OPTIONS = ("--size", "--disable-userns")
"""Of newer versions: a tmpfs of a size, no user namespaces inside."""


def walls() -> Walls:
    """Raises: PolicyError R36: no sandbox can be built here; says why."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise PolicyError("R36", "no sandbox can be had here: there is no program bwrap")
    there = ("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
    try:
        version, known = _asked(bwrap, "--version").strip(), _asked(bwrap, "--help")
        options = frozenset(each for each in OPTIONS if each in known)
        _asked(bwrap, *NAMESPACES, *_inner(options), *there, "--", "/bin/true")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        message = f"no sandbox can be had here: bwrap says: {said.strip()}"
        raise PolicyError("R36", message) from None
    return Walls(bwrap, version, options, landlock_abi(), cgroups.here())


def _inner(options: frozenset[str]) -> tuple[str, ...]:
    return ("--disable-userns",) if "--disable-userns" in options else ()


def _asked(*command: str) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PROBE_S,
        check=True,
    )
    return done.stdout


def launcher(
    workspace: Workspace,
    sites: Mapping[str, Json],
    device: str,
    isolation: Isolation,
    limits: Limits = Limits(),
) -> Launcher:
    """That of processes, at the level of isolation that is asked for.

    `sites`: what each site's loader is handed.
    Raises: PolicyError: R36 the level cannot be had, R37 a site's data is where no task may look.
    """
    if isolation == "process":
        return Processes()
    if isolation == "container":
        message = "isolation: container asks for more than processes of this machine can have: "
        raise PolicyError("R36", f"{message}a sandbox at most")
    for source in sites.values():
        data_paths(source, workspace.root)
    return Sandboxed(workspace, sites, device, walls(), limits)


# -- what is seen ---------------------------------------------------------------------------------


def data_paths(source: Json, root: Path) -> tuple[Path, ...]:
    """The files and folders that a site's source names: its text, or the texts in it; of a pattern
    (`data/*.csv`) the folder.

    Raises: PolicyError R37: one lies in what is the site's own in its workspace, or contains it.
    """
    found = tuple(dict.fromkeys(_named(source, root)))
    for path in found:
        real = path.resolve()
        for own in (root / name for name in OWN):
            if real == own or own in real.parents or real in own.parents:
                message = f"the data {path} would show {own} to the task process"
                raise PolicyError("R37", message)
    return found


def texts(source: Json) -> Iterator[str]:
    """A site's source, if it is a text, or the texts in it."""
    if isinstance(source, str):
        yield source
    elif isinstance(source, Mapping | list):
        for each in source.values() if isinstance(source, Mapping) else source:
            yield from texts(each)


def _named(source: Json, root: Path) -> Iterator[Path]:
    for text in filter(None, texts(source)):
        with suppress(OSError, ValueError):  # no path at all
            path = Path(os.path.normpath(root / text))
            while any(glob.has_magic(part) for part in path.relative_to(path.anchor).parts):
                path = path.parent
            if path.exists() and not (path == root and text not in (".", str(root))):
                yield path


def interpreter(root: Path) -> tuple[Path, ...]:
    """Where Python, its packages and openfed are, besides the system's own folders.

    Raises: PolicyError R37: in the workspace's own folder.
    """
    start = 0 if sys.flags.safe_path else 1  # the folder of the script, or the current one
    packages = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    named = [sys.prefix, sys.base_prefix, *packages, *sys.path[start:]]
    own = Path(openfed.__file__).parent
    around = () if own.parent.name in PACKAGES else (own.parent,)  # a checkout: not all of it
    apart, found = (Path.home(), root, *around), [own]
    for path in map(Path, named):
        if not path.is_absolute() or not path.exists() or path in (Path("/"), Path("/usr")):
            continue
        if path == root and str(path) in (sys.prefix, sys.base_prefix):
            message = f"Python is installed in the workspace's own folder {root}: use another one"
            raise PolicyError("R37", message)
        if not any(path == each or path in each.parents for each in apart):
            found.append(path)
    inside = {path for path in found if not any(str(path).startswith(f"{s}/") for s in SYSTEM)}
    return tuple(sorted(path for path in inside if not inside & set(path.parents)))


@dataclass(frozen=True)
class View:
    """What a task process sees of this machine besides the system, at the same paths."""

    hidden: Path  # the workspace: empty, but for what is in the others
    home: Path
    packages: tuple[Path, ...]
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    devices: tuple[Path, ...] = ()


def view_of(spec: NodeSpec, workspace: Workspace, source: Json, device: str) -> View:
    """What the task process `spec` needs to see; `source`: what its loader is handed."""
    root, exchange = workspace.root, spec.option("--exchange")
    writes = Path(exchange) / "out" if exchange else Path(spec.option("--initial"))
    reads = [root / "src", root / "plan", *((Path(exchange),) if exchange else ())]
    gpus = () if device == "cpu" else tuple(Path(each) for each in sorted(glob.glob(DEVICES)))
    return View(
        hidden=root,
        home=spec.folder,
        packages=interpreter(root),
        reads=(*(path for path in reads if path.exists()), *data_paths(source, root)),
        writes=(writes,),
        devices=gpus,
    )


# -- how it is started ----------------------------------------------------------------------------


def wrapped(view: View, there: Walls, limits: Limits) -> list[str]:
    """What stands before a command that is to run in a sandbox."""
    tmpfs = partial(_tmpfs, limits.bytes // 4 if "--size" in there.options else None)
    outside = [path for path in view.packages if view.hidden not in path.parents]
    inside = [path for path in view.packages if view.hidden in path.parents]
    words = [there.bwrap, *NAMESPACES, *_inner(there.options)]
    words += ["--proc", "/proc", "--dev", "/dev", *tmpfs("/dev/shm"), *tmpfs("/tmp")]
    words += [word for path in SYSTEM for word in _system(Path(path))]
    words += _each("--ro-bind-try", SETTINGS)
    if view.devices:
        words += [*_each("--dev-bind", view.devices), *_each("--ro-bind-try", ["/sys"])]
    words += ["--ro-bind", str(view.home / "passwd"), "/etc/passwd"]
    words += [*_each("--ro-bind", outside), "--tmpfs", str(view.hidden)]
    words += _each("--ro-bind", (*inside, *view.reads))
    words += _each("--bind", view.writes)
    if view.home not in view.writes:
        words += tmpfs(str(view.home))
    for path in (str(view.hidden), "/proc", "/"):  # /proc: settings of the kernel, for root
        words += ["--remount-ro", path]
    return [*words, "--chdir", str(view.home), "--setenv", "TMPDIR", "/tmp", "--"]


def _tmpfs(size: int | None, path: str) -> list[str]:
    return [*(("--size", str(size)) if size else ()), "--tmpfs", path]


def _each(how: str, paths: Iterable[object]) -> list[str]:
    return [word for path in paths for word in (how, str(path), str(path))]


def _system(path: Path) -> list[str]:
    """`/lib` is a link to `usr/lib` on most systems."""
    if path.is_symlink():
        return ["--symlink", os.readlink(path), str(path)]
    return ["--ro-bind", str(path), str(path)] if path.is_dir() else []


def confined(spec: NodeSpec, view: View, there: Walls, limits: Limits) -> NodeSpec:
    """The same, putting up the inner walls first."""
    told = {
        "landlock": there.landlock,
        "writes": [str(path) for path in (*view.writes, view.home, Path("/tmp"), Path("/dev/shm"))],
        "memory": limits.bytes,
        "processes": limits.pids,
        "file_size": FILE_SIZE,
    }
    return replace(spec, module=CONFINE, arguments=(json.dumps(told), *spec.arguments))


def by_signal(code: int) -> int:
    """The exit code as of the process itself: bwrap, like a shell, ends with 128 + N for signal N.

    >>> by_signal(137), by_signal(5)
    (-9, 5)
    """
    return 128 - code if code - 128 in set(signal.Signals) else code


class Sandboxed:
    """Launches task processes in sandboxes, and the others as they are."""

    def __init__(
        self,
        workspace: Workspace,
        sites: Mapping[str, Json],
        device: str,
        there: Walls,
        limits: Limits,
    ) -> None:
        self._workspace, self._sites, self._device = workspace, sites, device
        self._walls, self._limits, self.isolation = there, limits, there.words

    def start(self, spec: NodeSpec, tell: Tell) -> Node:
        if spec.kind != Kind.TASK:
            return Process(spec, tell)
        source = self._sites.get(spec.site)
        view = view_of(spec, self._workspace, source, self._device)
        _lay_ready(view)
        groups = self._groups(view)
        entered = ("/bin/sh", "-c", ENTERED, "sh", *(f"{each}/cgroup.procs" for each in groups))
        before = [*entered, "--", *wrapped(view, self._walls, self._limits)]

        def told(news: Line | Exit) -> None:
            if isinstance(news, Exit):
                cgroups.remove(groups)
                news = replace(news, code=by_signal(news.code))
            tell(news)

        inner = confined(spec, view, self._walls, self._limits)
        return Process(inner, told, before)

    def _groups(self, view: View) -> tuple[Path, ...]:
        if not self._walls.groups:
            return ()
        name = f"openfed-{sha256(str(view.writes).encode()).hexdigest()[:12]}"
        limits = self._limits
        try:
            return cgroups.make(self._walls.groups, name, limits.bytes, limits.pids)
        except OSError as error:
            raise PolicyError("R36", f"the control group {name} cannot be made: {error}") from None


def _lay_ready(view: View) -> None:
    """What is mounted must be there: folders, and who the process is to itself."""
    for path in (*view.writes, view.home):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    line = f"task:x:{os.getuid()}:{os.getgid()}::{view.home}:/bin/sh\n"
    (view.home / "passwd").write_text(line)
