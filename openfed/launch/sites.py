"""`site.yaml` on disk: what only this site decides."""

import json
from functools import partial
from pathlib import Path

from openfed.errors import UsageError
from openfed.files import write_whole
from openfed.pki.enrolment import Dial, enroll
from openfed.pki.peer import node_name
from openfed.pki.token import Token
from openfed.plan.load import load_plan
from openfed.plan.local import Local, check_named
from openfed.plan.lock import Lock
from openfed.plan.site import Site, in_words, objections, read_site, refusal
from openfed.transport.proxy import connect
from openfed.workspace import Workspace

SITE = "site.yaml"

_TEXT = """\
# What only this site decides. It stays here: it is not part of the plan and is never exported.
name: {name}
data: {data}  # handed to the plan's data loader as it stands
device: auto  # auto | cpu | cuda | cuda:N | mps
threads: 1
# address: fl.example.org:50051  # dialled instead of the address in the plan
proxy: none  # or http://host:port, asked to CONNECT; those of the environment are never used
isolation: process  # or sandbox, container: what holds the code that sees the data, at least

# A plan cannot widen these: a plan that asks for more is refused before anything starts.
limits:
  # rounds: 100  # of a plan
  # seconds: 30m  # of one task; then it is stopped
  # bytes_out: 2GiB  # of all replies of a run; then this site leaves it
  # metrics: [accuracy]  # the only ones that leave, besides the number of samples
  # samples: 50  # nothing of a training with fewer leaves

# What is done to an update, in this order, before it is coded and leaves.
filters:
  # - drop: ["head.*"]  # these entries leave as zeros
  # - clip_norm: 1.0  # its floating parameters are scaled down to this L2 norm
  # - noise: {{std: 0.001}}  # gaussian, on every floating parameter

# What each container may use, where this site runs in containers. No plan decides any of it.
container:
  # memory: 4GiB  # beyond it the process is killed; there is no swap
  # cpus: 2  # one for each of `threads`, if it is not said
  # pids: 512  # processes and threads
  # user: "1000:1000"  # UID:GID; else whom this workspace belongs to
"""


def site_of(workspace: Workspace) -> Site | None:
    """This workspace's site; None: it has no site.yaml. Raises: PlanError."""
    path = workspace.root / SITE
    return read_site(path) if path.exists() else None


def words_of(workspace: Workspace) -> list[str]:
    """The site's own limits and filters, for people; nothing without a site.yaml."""
    site = site_of(workspace)
    return in_words(site) if site else []


def enrol(workspace: Workspace, token: Token, pin: str) -> list[Path]:
    """Enrol this site with a token, through its proxy, if it has one. Raises as `enroll`."""
    federation = load_plan(workspace.plan).federation
    return enroll(workspace.cert, token, pin, federation, dial=dial_of(workspace))


def dial_of(workspace: Workspace) -> Dial:
    """How this workspace's site connects to others."""
    site = site_of(workspace)
    return partial(connect, proxy=site.proxy if site else None)


def local_of(site: Site, name: str) -> Local:
    """What the launcher needs of it. Raises: UsageError U16: it is the file of another site."""
    if site.name != name:
        message = f"{SITE} here is of {site.name!r}: start it with -n {site.name}, or go to the "
        raise UsageError("U16", f"{message}workspace of {name!r}")
    return Local(
        sites={name: site.data},
        device=site.device,
        threads=site.threads,
        isolation=site.isolation,
    )


def check_site(workspace: Workspace, site: Site, lock: Lock) -> None:
    """Before anything starts. Raises: PolicyError R30 to R35: what of the plan the site forbids."""
    if found := objections(site, lock.plan, lock):
        raise refusal(workspace.root / SITE, found)


def create_site(workspace: Workspace, name: str, data: str) -> tuple[Path, ...]:
    """Write site.yaml; nothing where it is there already, of this name and this data.

    Raises: CertificateError C04: no name for a node. UsageError: U16 not in the plan, P42 there is
    another site.yaml. PlanError: the plan, or the site.yaml that is there, is wrong.
    """
    node_name(name)
    check_named(load_plan(workspace.plan), name)
    path = workspace.root / SITE
    if (kept := site_of(workspace)) is None:
        text = _TEXT.format(name=json.dumps(name), data=json.dumps(data, ensure_ascii=False))
        return (write_whole(path, text.encode(), 0o600),)
    for key, found, given in (("name", kept.name, name), ("data", kept.data, data)):
        if found != given:
            message = f"{SITE} is there and says {key}: {json.dumps(found, ensure_ascii=False)}, "
            message += f"not {json.dumps(given, ensure_ascii=False)}; it was left as it is. Edit it"
            raise UsageError("P42", f"{message}, or remove it first")
    return ()
