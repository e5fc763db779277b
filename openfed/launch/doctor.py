"""`fx doctor`: everything that keeps a node of this workspace from taking part, found beforehand.

It changes nothing: it writes one file, which it removes, and greets the aggregator once.
"""

import asyncio
import errno
import os
import re
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from openfed.errors import (
    CertificateError,
    OpenFedError,
    PlanError,
    PolicyError,
    Problem,
    TransportError,
    UsageError,
)
from openfed.files import lock_file, write_whole
from openfed.launch.consent import SITE, approval_for, author, outdated
from openfed.launch.findings import (
    IN_MEMORY,
    OVER_NETWORK,
    Finding,
    failed,
    filesystem,
    needed,
    passed,
    warned,
    within,
)
from openfed.launch.open_files import files_for, may_open, shortage
from openfed.launch.places import dialled
from openfed.launch.sandbox import data_paths, walls
from openfed.launch.status import latest, status
from openfed.launch.trust import approval
from openfed.observe.text import plural, size
from openfed.parse import Proxy, is_ip, split_address
from openfed.pki.disk import authority_here, load_authority, read, read_secret
from openfed.pki.files import load_identity, load_roster, may_issue
from openfed.pki.keys import identity_public, load_key
from openfed.pki.leaf import Identity, check_leaf, half_life, inspect, leaf_hosts
from openfed.pki.office import open_office
from openfed.pki.peer import AGGREGATOR, COLLABORATOR, Peer, host_name
from openfed.plan.load import load_plan
from openfed.plan.local import Isolation, check_named, read_local
from openfed.plan.lock import Lock, read_lock, verify_files
from openfed.plan.schema import Plan
from openfed.plan.site import Site, objections, read_site
from openfed.transport.grpc import GrpcLink
from openfed.transport.probe import diagnose
from openfed.typing import Json
from openfed.wire.messages import Hello, Stamp
from openfed.workspace import Workspace

T = TypeVar("T")

PROBE_S, HELLO_S, PORT_S = 4.0, 3.0, 2.0
"""How long each step on the network may take; together less than ten seconds."""
SKEW_S = 30.0
ROOM = 4
"""Models that have to fit on the disk: the one in use, the next, and what sites send."""
TRIAL = "fx run makes them for a trial on this machine; else: "
LEVELS = {
    "process": "process: contains faults, not hostile code; a site can ask for isolation: sandbox",
    "container": "container: of fx run --launcher docker and fx workspace compose only",
}
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")


@dataclass(frozen=True)
class Here:
    """What this workspace is. `trial`: starting a node may issue what it lacks."""

    workspace: Workspace
    now: float
    trial: bool
    aggregator: bool = False
    sites: tuple[str, ...] = ()
    plan: Plan | None = None  # of plan.lock; of plan.yaml where there is none
    lock: Lock | None = None
    site: Site | None = None

    @property
    def nodes(self) -> tuple[str, ...]:
        return ((AGGREGATOR,) if self.aggregator else ()) + self.sites

    @property
    def missing(self) -> str:
        """What to do about certificates that are not there; empty: the code says it."""
        return TRIAL + "fx workspace certify, fx aggregator certify" if self.trial else ""


def examine(workspace: Workspace, name: str | None = None) -> Iterator[Finding]:
    """Every finding, as it is made. `name`: of a collaborator, or `aggregator`; without it what
    the workspace's files say."""
    here = yield from examine_here(workspace, name)
    yield from _network(here)


def examine_here(workspace: Workspace, name: str | None = None) -> Generator[Finding, None, Here]:
    """What can be found without dialling anybody: also what `start` looks at first."""
    here = Here(workspace, time.time(), _guarded(partial(may_issue, workspace.cert)) or False)
    yield from _versions()
    yield from _proxies(os.environ)
    plan, found = _plan(workspace)
    yield from found
    lock, found = _lock(here)
    yield from found
    own, found = _site(workspace)
    yield from found
    here = replace(here, plan=lock.plan if lock else plan, lock=lock, site=own)
    here, found = _sides(here, name)
    yield from found
    if lock:
        yield from _signature(workspace, lock)
    yield from _clock(here)
    yield from _disk(here)
    for node in here.nodes:
        yield from _node(here, node)
    if here.aggregator:
        yield from _authority(workspace)
        yield from _files(here)
        yield from _port(here)
    for site in here.sites:
        yield from _approval(here, site)
    yield from _sources(here)
    return here


def _guarded(work: Callable[[], T]) -> T | None:
    """What `work` returns; None where it fails with what another check will tell."""
    try:
        return work()
    except (OpenFedError, OSError):
        return None


# -- this machine ----------------------------------------------------------------------------------


def _versions() -> Iterator[Finding]:
    """Those that the package's own metadata name as tried: Pythons, and bounds of what it needs."""
    try:
        about = metadata.metadata("openfed-fx")
        requires = metadata.requires("openfed-fx") or []
    except metadata.PackageNotFoundError:
        yield warned("versions", "U61", "openfed is not installed as a package: nothing to compare")
        return
    yield _python(about.get_all("Classifier") or [])
    wrong = [text for each in requires if (text := _unlike(each))]
    for text in wrong:
        yield warned("packages", "U61", text)
    if not wrong:
        yield passed("packages", "every version is one that openfed is made for")


def _python(classifiers: Iterable[str]) -> Finding:
    start = "Programming Language :: Python :: 3."
    tried = [f"3.{each.removeprefix(start)}" for each in classifiers if each.startswith(start)]
    found = f"{sys.version_info.major}.{sys.version_info.minor}"
    if found in tried:
        return passed("python", sys.version.split()[0])
    return warned("python", "U61", f"expected Python {' or '.join(tried)}, found {found}")


def _unlike(requirement: str) -> str:
    """How an installed package differs from what is asked for; empty: it does not."""
    if (asked := needed(requirement)) is None:
        return ""
    name, bounds = asked
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return f"expected {name}{bounds}, found none"
    return "" if within(found, bounds) else f"expected {name}{bounds}, found {found}"


def _proxies(environment: Iterable[str]) -> Iterator[Finding]:
    names = sorted(name for name in environment if name.lower() in PROXIES)
    if names:
        yield warned("proxy", "U64", f"the environment has {', '.join(names)}: not used")
    else:
        yield passed("proxy", "none in the environment")


def _clock(here: Here) -> Iterator[Finding]:
    """Against the file system, which may be another machine's, and files written earlier."""
    try:
        with _written(here.workspace) as path:
            skew = path.stat().st_mtime - time.time()
    except OSError:
        return  # told by `_disk`
    public = (here.workspace.plan, here.workspace.lock, here.workspace.cert / "authority.pem")
    ahead = max((path.stat().st_mtime - here.now for path in public if path.exists()), default=0.0)
    if abs(skew) > SKEW_S:
        yield warned("clock", "U65", f"the file system's clock differs by {skew:+.0f} s")
    elif ahead > SKEW_S:
        found = f"a file of this workspace was written {ahead:.0f} s in this clock's future"
        yield warned("clock", "U65", found)
    else:
        yield passed("clock", time.strftime("%F %T UTC", time.gmtime(here.now)))


@contextmanager
def _written(workspace: Workspace) -> Iterator[Path]:
    """A file, written and synced where the runs' state lies."""
    folder = workspace.runs if workspace.runs.is_dir() else workspace.root
    path = folder / f".doctor-{os.getpid()}"
    try:
        yield write_whole(path, b"fx doctor\n", 0o600)
    finally:
        path.unlink(missing_ok=True)


def _disk(here: Here) -> Iterator[Finding]:
    folder = here.workspace.runs if here.workspace.runs.is_dir() else here.workspace.root
    kind = filesystem(_mounts(), str(folder.resolve()))
    if kind in IN_MEMORY:
        yield warned("disk", "U66", f"{folder} is on {kind}: in memory, gone after a restart")
    elif kind in OVER_NETWORK:
        yield warned("disk", "U66", f"{folder} is on {kind}: on another machine")
    else:
        yield passed("disk", f"{folder} is on {kind or 'a disk'}")
    yield from _writing(here.workspace)
    yield from _space(here, folder)


def _mounts() -> str:
    mounts = Path("/proc/self/mountinfo")
    return mounts.read_text(errors="replace") if mounts.exists() else ""


def _writing(workspace: Workspace) -> Iterator[Finding]:
    what = "files"
    try:
        with _written(workspace) as path:
            held = lock_file(path, wait=False)
            try:
                os.close(lock_file(path, wait=False))
                works = False
            except BlockingIOError:
                works = True
            finally:
                os.close(held)
    except OSError as error:
        yield from failed(what, OpenFedError("S12", f"{workspace.root}: {error.strerror}"))
        return
    if works:
        yield passed(what, "are written, synced and locked")
    else:
        message = "two processes can hold the same lock on a file of this workspace"
        yield from failed(what, OpenFedError("U67", message))


def _space(here: Here, folder: Path) -> Iterator[Finding]:
    model = sum(spec.size for spec in here.lock.signature) if here.lock else 0
    free, needs = shutil.disk_usage(folder).free, ROOM * model
    message = f"expected {size(needs)}, {ROOM} times the model, found {size(free)} free"
    if free < model:
        yield from failed("space", OpenFedError("U68", message))
    elif free < needs:  # a run that is resumed has some of it already
        yield warned("space", "U68", message)
    else:
        yield passed("space", f"{size(free)} free; {ROOM} times the model is {size(needs)}")


def _files(here: Here) -> Iterator[Finding]:
    sites, most = len(here.plan.named) or here.plan.fewest if here.plan else 0, may_open()
    if most < files_for(sites):
        yield from failed("open files", OpenFedError("T20", shortage(sites, most)))
    else:
        yield passed("open files", f"{most} may be; {files_for(sites)} are needed")


# -- the plan --------------------------------------------------------------------------------------


def _plan(workspace: Workspace) -> tuple[Plan | None, list[Finding]]:
    try:
        plan = load_plan(workspace.plan)
    except PlanError as error:
        wrong = tuple(each for each in error.problems if not _of_freezing(workspace, each))
        found = failed("plan", PlanError(wrong)) if wrong else ()
        return None, list(found) or [passed("plan", "frozen elsewhere, with its initial model")]
    sites = plural(plan.fewest, "collaborator") + ("" if plan.named else " or more")
    return plan, [passed("plan", f"{plan.name} of federation {plan.federation}, {sites}")]


def _of_freezing(workspace: Workspace, problem: Problem) -> bool:
    """The file of `init` goes to no site: plan.lock has the digest of the model made from it."""
    lock = _guarded(partial(read_lock, workspace.lock))
    asked = (problem.path, problem.code) == ("init", "P16")
    return asked and lock is not None and lock.plan.init is not None


def _lock(here: Here) -> tuple[Lock | None, list[Finding]]:
    workspace, what = here.workspace, "plan.lock"
    if here.trial and not workspace.lock.exists():
        remedy = "fx run writes it; to start nodes one by one: fx plan initialize"
        return None, [warned(what, "P19", "is not there yet", remedy)]
    try:
        lock = read_lock(workspace.lock)
    except PlanError as error:
        return None, list(failed(what, error))
    found = [_current(workspace, lock)]
    try:
        verify_files(workspace.root, lock)
        found.append(passed("code", f"as frozen: {plural(len(lock.files), 'file')}"))
    except PlanError as error:
        found += failed("code", error)
    return lock, found


def _current(workspace: Workspace, lock: Lock) -> Finding:
    first = _guarded(partial(_changed, workspace, lock))
    if not first:
        return passed("plan.lock", f"plan {lock.digest[:16]}")
    found = f"it is what runs, frozen from other settings than plan.yaml has now: {first}"
    return warned("plan.lock", "P30", found, "If plan.yaml is right: fx plan initialize.")


def _changed(workspace: Workspace, lock: Lock) -> str:
    """What plan.yaml says otherwise; also `listen`, which is not in the digest. Empty: nothing."""
    if (first := outdated(workspace, lock)) is not None:
        return str(first)
    said = load_plan(workspace.plan).aggregator.listen
    return "" if said == lock.listen else f"aggregator.listen: {lock.listen} -> {said}"


def _signature(workspace: Workspace, lock: Lock) -> Iterator[Finding]:
    try:
        signed = author(workspace, lock.digest)
    except PolicyError as error:
        yield from failed("signature", error)
    except CertificateError:
        pass  # the roster's: told with the nodes
    else:
        yield passed("signature", f"signed by {signed.who}" if signed else "nobody has signed it")


def _approval(here: Here, site: str) -> Iterator[Finding]:
    what = f"approval of {site}"
    if here.lock is None:
        return
    try:
        signed = approval_for(here.workspace, here.lock, site)
    except PolicyError as error:
        if error.code == "R23" and here.trial:
            yield passed(what, "fx run approves for a trial on this machine")
        else:
            yield from failed(what, error)
    except (PlanError, CertificateError):
        pass  # the code, or the key: told there
    else:
        yield passed(what, f"plan {signed.digest[:16]}")


# -- whose workspace -------------------------------------------------------------------------------


def _sides(here: Here, name: str | None) -> tuple[Here, list[Finding]]:
    """`here` with who is examined: named, or as site.yaml, the keys, or a trial's plan say."""
    workspace, known = here.workspace, here.plan.named if here.plan else ()
    if name == AGGREGATOR:
        return replace(here, aggregator=True), []
    if name or here.site:
        site = name or (here.site.name if here.site else "")
        return replace(here, sites=(site,)), [*_listed(here, site), *_of_another(here, site)]
    keys = sorted(path.parent.name for path in workspace.cert.glob("*/node.key"))
    sites = tuple(each for each in keys if each != AGGREGATOR)
    aggregator = (workspace.cert / AGGREGATOR).is_dir()
    if here.trial and workspace.local.exists():
        aggregator, sites = True, known or sites
    if aggregator or sites:
        found = [each for site in sites for each in _listed(here, site)]
        return replace(here, aggregator=aggregator, sites=sites), found
    message = f"neither {SITE} nor keys below cert/ say whose workspace this is"
    return here, list(failed("side", UsageError("U60", message)))


def _listed(here: Here, site: str) -> Iterator[Finding]:
    try:
        if here.plan:
            check_named(here.plan, site)
    except UsageError as error:
        yield from failed("side", error)


def _of_another(here: Here, site: str) -> Iterator[Finding]:
    if here.site and here.site.name != site:
        message = f"{SITE} here is of {here.site.name!r}: go to the workspace of {site!r}"
        yield from failed("side", UsageError("U16", message))


def _site(workspace: Workspace) -> tuple[Site | None, list[Finding]]:
    path = workspace.root / SITE
    if not path.exists():
        return None, []
    try:
        site = read_site(path)
    except PlanError as error:
        return None, list(failed(SITE, error))
    through = f", which reaches others through the proxy {site.proxy}" if site.proxy else ""
    return site, [passed(SITE, f"of {site.name}{through}")]


def _sources(here: Here) -> Iterator[Finding]:
    """Where the sites' data is, and whether site.yaml goes with the plan."""
    root = here.workspace.root
    if here.site:
        yield from _allowed(here, here.site)
        yield from _isolation(here.site.name, root, here.site.isolation, here.site.data)
        yield from _data(f"data of {here.site.name}", root, here.site.data)
    elif here.sites and here.plan and not (root / SITE).exists():
        what = here.workspace.local.name
        try:
            local = read_local(here.workspace.local, here.plan.collaborators)
        except PlanError as error:
            yield from failed(what, error)
            return
        yield passed(what, "can be read")
        for site in here.sites:
            if site in local.sites:
                yield from _isolation(site, root, local.isolation, local.sites[site])
                yield from _data(f"data of {site}", root, local.sites[site])


def _allowed(here: Here, site: Site) -> Iterator[Finding]:
    if here.plan is None:
        return
    found = objections(site, here.plan, here.lock)
    for each in found:
        place = ".".join(map(str, each.at))
        error = PolicyError(each.code, f"{SITE}  {place}  {each.message}")
        yield from failed(f"limits of {site.name}", error)
    if not found:
        yield passed(f"limits of {site.name}", "the plan keeps them")


def _isolation(name: str, root: Path, level: Isolation, source: Json) -> Iterator[Finding]:
    """What will hold the site's task process, and what that lacks on this machine."""
    what = f"isolation of {name}"
    if level != "sandbox":
        yield passed(what, LEVELS[level])
        return
    try:
        found = walls()
        data_paths(source, root)
    except PolicyError as error:
        yield from failed(what, error)
        return
    for gap in found.gaps:
        yield warned(what, "U85", gap)
    yield passed(what, found.words)


def _data(what: str, root: Path, source: Json) -> Iterator[Finding]:
    """What is a path must be there; anything else only the loader understands."""
    if not isinstance(source, str) or not _is_path(root, source):
        yield passed(what, "no path: the loader is given it as it stands")
        return
    path = root / source
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            path.open("rb").close()
    except OSError as error:
        yield from failed(what, UsageError("U62", f"{path}: {error.strerror}"))
    else:
        yield passed(what, str(path))


def _is_path(root: Path, source: str) -> bool:
    """Whether it can be nothing else: `owner/set` may be a name that the loader knows."""
    if "://" in source:
        return False
    rooted = source.startswith(("/", "./", "../"))
    begun = "/" in source and (root / source.partition("/")[0]).is_dir()
    return rooted or begun or bool(_SUFFIX.search(source)) or (root / source).exists()


_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,7}$")


# -- certificates ----------------------------------------------------------------------------------


def _node(here: Here, name: str) -> Iterator[Finding]:
    folder = here.workspace.cert / name
    if here.trial and not folder.exists():
        yield warned(f"keys of {name}", "C12", "none yet", here.missing)
        return
    faults = [each for key, parse in _KEYS for each in _key(folder / key, name, parse)]
    yield from faults or [passed(f"keys of {name}", "here, and for nobody else to read")]
    if any(each.code != "C11" for each in faults):
        return  # no key to compare the certificate with
    yield from _certificate(here, name)
    yield from _member(here, name)


_KEYS: tuple[tuple[str, Callable[[bytes], object]], ...] = (
    ("node.key", load_key),
    ("identity.key", identity_public),
)


def _key(path: Path, name: str, parse: Callable[[bytes], object]) -> Iterator[Finding]:
    try:
        parse(read_secret(path))
    except CertificateError as error:
        if path.name in error.message or error.code == "C11":
            yield from failed(f"keys of {name}", error)
        else:
            named = CertificateError(error.code, f"{path}: {error.message}")
            yield from failed(f"keys of {name}", named)


def _certificate(here: Here, name: str) -> Iterator[Finding]:
    what, cert = f"certificate of {name}", here.workspace.cert
    chain = b""
    try:
        chain = read(cert / name / "chain.pem")
        peer = check_leaf(
            chain,
            read(cert / name / "node.key"),
            read(cert / "authority.pem"),
            now=here.now,
            federation=here.plan.federation if here.plan else None,
            role=_role(name),
            name=name,
        )
    except CertificateError as error:
        yield from failed(what, error, _slow(here, chain) if error.code == "C06" else "")
        return
    yield _left(what, chain, peer, here.now)
    if name == AGGREGATOR and here.plan:
        yield from _hosts(here.plan.aggregator.advertise, chain)


def _role(name: str) -> str:
    return AGGREGATOR if name == AGGREGATOR else COLLABORATOR


def _slow(here: Here, chain: bytes) -> str:
    begins = 2 * half_life(chain) - inspect(chain).not_after
    return f"Set the clock (NTP): by this certificate it is {begins - here.now:.0f} s slow or more."


def _left(what: str, chain: bytes, peer: Peer, now: float) -> Finding:
    whole, left = 2 * (peer.not_after - half_life(chain)), peer.not_after - now
    days = f"ends in {left / 86400:.1f} days, of {whole / 86400:.1f}"
    if left < whole / 3:
        return warned(what, "U63", days)
    return passed(what, f"{peer.role} {peer.name} of {peer.federation}, {days}")


def _hosts(advertise: Iterable[str], chain: bytes) -> Iterator[Finding]:
    what, named = "hosts", leaf_hosts(chain)
    lacking = [host for host in advertise if str(host_name(host)) not in named]
    if lacking:
        message = (
            f"the aggregator's certificate does not name {', '.join(lacking)}, which the plan "
            f"advertises; it names {', '.join(sorted(named)) or 'no host'}"
        )
        remedy = "Have it issued again, with every name: fx aggregator certify."
        yield from failed(what, CertificateError("C22", message), remedy)
    else:
        yield passed(what, f"the certificate names {', '.join(advertise)}")


def _member(here: Here, name: str) -> Iterator[Finding]:
    """Whether the roster that is here admits the node. What the authority decided since is told
    by the aggregator."""
    what, cert = f"roster on {name}", here.workspace.cert
    try:
        roster = load_roster(cert)
        peer = inspect(read(cert / name / "chain.pem"))
        public = identity_public(read(cert / name / "identity.key"))
    except CertificateError as error:
        yield from failed(what, error)
        return
    names = {member.name for member in roster.members}
    if name not in names:
        message = f"number {roster.number} has no {name}; it has {', '.join(sorted(names))}"
        yield from failed(what, CertificateError("C32", message))
    elif roster.identity(name) is None or peer.serial in roster.revoked_serials:
        message = f"by number {roster.number}, {_role(name)} {name} is revoked"
        yield from failed(what, CertificateError("C18", message))
    elif roster.identity(name) != public:
        message = f"number {roster.number} has another identity key for {name}"
        yield from failed(what, CertificateError("C30", message))
    else:
        yield passed(what, f"number {roster.number}, admitted")


def _authority(workspace: Workspace) -> Iterator[Finding]:
    if not authority_here(workspace.cert):
        return
    try:
        load_authority(workspace.cert)  # its modes
        record = open_office(workspace.cert).record()
    except CertificateError as error:
        yield from failed("authority", error)
    else:
        yield passed("authority", f"here; has enrolled {plural(len(record.nodes), 'node')}")


# -- the network -----------------------------------------------------------------------------------


def _port(here: Here) -> Iterator[Finding]:
    """Whether the aggregator can listen, or does."""
    what = "port"
    if here.plan is None:
        return
    listen = here.plan.aggregator.listen
    host, port = split_address(listen)
    if not port:
        yield from _no_port(here, what, listen)
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            why = f"cannot listen on {listen}: {error.strerror}"
            yield from failed(what, TransportError("T03", why))
        elif _listening(here, host, port):
            yield passed(what, f"the aggregator of this workspace listens at {listen}")
        else:
            message = f"{listen}: the port is in use, not by the aggregator of this workspace"
            yield from failed(what, TransportError("T02", message))
    else:
        yield passed(what, f"{listen} can be listened on")


def _no_port(here: Here, what: str, listen: str) -> Iterator[Finding]:
    if here.aggregator and here.sites:
        yield passed(what, f"{listen}: fx run takes one that is free")
    else:
        message = f"expected a port in aggregator.listen, got {listen}"
        yield from failed(what, UsageError("U17", message))


def _listening(here: Here, host: str, port: int) -> bool:
    """Whether a run of this workspace goes on, and this node's own certificate is shown there."""
    cert = here.workspace.cert
    if status(here.workspace, latest(here.workspace))["status"] != "running":
        return False
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        shown = ssl.get_server_certificate((near, port), timeout=PORT_S).encode()
        _, _, between = read(cert / AGGREGATOR / "chain.pem").partition(_END)
        key, anchors = read(cert / AGGREGATOR / "node.key"), read(cert / "authority.pem")
        check_leaf(shown + between, key, anchors, now=half_life(shown))  # whatever its dates
    except (OSError, ValueError, CertificateError):
        return False
    return True


@dataclass(frozen=True)
class _Way:
    """How a site goes to its aggregator. `greeting`: plan digest and approval; None without."""

    what: str
    address: str
    proxy: Proxy | None
    identity: Identity
    greeting: tuple[str, bytes] | None


_END = b"-----END CERTIFICATE-----\n"


def _network(here: Here) -> Iterator[Finding]:
    """The way to the aggregator, where it is not in this workspace as well."""
    if here.aggregator or here.plan is None:
        return
    asked: list[_Way] = []
    for site in here.sites:
        what = f"network of {site}"
        address = _address(here.plan, here.site)
        identity = _guarded(partial(load_identity, here.workspace.cert, site, now=here.now))
        if identity is None:
            continue  # told with the certificate
        if split_address(address)[1]:
            lock = here.lock
            shown = _guarded(partial(approval, here.workspace, lock, site)) if lock else None
            greeting = (lock.digest, shown) if lock and shown is not None else None
            proxy = here.site.proxy if here.site else None
            asked.append(_Way(what, address, proxy, identity, greeting))
        else:
            yield from _no_port(here, what, here.plan.aggregator.listen)
    yield from asyncio.run(_all_reached(asked))


def _address(plan: Plan, site: Site | None) -> str:
    """What a site dials."""
    own = site.address if site else None
    return own or dialled(plan.aggregator.advertise[0], plan.aggregator.listen)


async def _all_reached(ways: Iterable[_Way]) -> list[Finding]:
    found = await asyncio.gather(*map(_reached, ways))
    return [finding for each in found for finding in each]


async def _reached(way: _Way) -> list[Finding]:
    cause = await _dialled(way)
    if cause:
        waits = "Start the aggregator, or check the port; fx collaborator start waits for it."
        told = cause.code == "T05" or (cause.code == "T06" and way.proxy)
        return list(failed(way.what, cause, waits if told else ""))
    found = f"{way.address} {_does(way)}, speaks TLS 1.3 with the aggregator's certificate"
    if way.greeting is None:
        return [passed(way.what, found)]  # the aggregator would refuse what was told already
    try:
        said = await _greeted(way, *way.greeting)
    except OpenFedError as error:
        return list(failed(way.what, error))
    return [passed(way.what, found), passed(way.what, said)]


def _does(way: _Way) -> str:
    if way.proxy:
        return f"connects through the proxy {way.proxy}"  # which resolves the name
    return "connects" if is_ip(split_address(way.address)[0]) else "resolves, connects"


async def _dialled(way: _Way) -> OpenFedError | None:
    probe = partial(diagnose, way.address, way.identity, time.time(), proxy=way.proxy)
    try:
        async with asyncio.timeout(PROBE_S):
            return await _aside(probe)
    except TimeoutError:
        message = f"{way.address}: neither name nor address answered in {PROBE_S:.0f} s"
        message += f", through the proxy {way.proxy}" if way.proxy else ""
        return TransportError("T06", message)


async def _greeted(way: _Way, digest: str, shown: bytes) -> str:
    """What the aggregator says to this site and plan. Raises what it refuses them with."""
    stamp = Stamp(way.identity.peer.federation, "", digest, f"doctor-{os.getpid()}")
    link = GrpcLink(way.address, way.identity, proxy=way.proxy)
    try:
        async with asyncio.timeout(HELLO_S):
            welcome = await link.hello(Hello(stamp, approval=shown))
    except TimeoutError:
        message = f"{way.address} did not answer in {HELLO_S:.0f} s"
        raise TransportError("T12", message) from None
    finally:
        await link.close()
    return f"the aggregator runs the same plan: run {welcome.stamp.run}, {welcome.state}"


def _aside(work: Callable[[], T]) -> asyncio.Future[T]:
    """In a thread that no exit waits for: a name server may be silent for half a minute."""
    done: Future[T] = Future()
    done.set_running_or_notify_cancel()  # from now on nobody cancels it

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 (raised again where it is awaited)
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return asyncio.wrap_future(done)
