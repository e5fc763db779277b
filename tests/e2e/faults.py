"""Faults to seed in a workspace of each side, made by the commands; servers that misbehave.

Each table says what `fx doctor` and `fx ... start` have to say of a fault: both are tried with it.
"""

import asyncio
import json
import os
import shutil
import socket
import ssl
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from openfed.files import write_whole
from openfed.node.admission import admit
from openfed.pki.authority import Enrolment, create_authority, issue
from openfed.pki.files import (
    install_roster,
    load_authority,
    load_identity,
    load_identity_key,
    load_profiles,
    make_request,
)
from openfed.pki.keys import create_identity_key, create_key
from openfed.pki.leaf import Identity, inspect
from openfed.pki.office import create_office, open_office
from openfed.pki.request import create_request
from openfed.plan.approval import sign_digest
from openfed.plan.lock import make_lock, read_lock, write_lock
from openfed.tensors.record import Spec
from openfed.transport.grpc import serve
from openfed.wire.messages import RunState, Stamp, Welcome
from openfed.workspace import TEMPLATES, Workspace
from tests.e2e.folders import by_hand, fx, import_at, passed, ready_to_serve

DAY = 86400.0
SITE = "name: mill\ndata: data/mill.csv\naddress: {address}\n"
PROFILES = load_profiles()
THEIRS = create_authority("line", time.time())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_two_sides(root: Path) -> Path:
    """aggregator/, with the authority, and mill/: certified, approved, each up to `start`."""
    agg, port = root / "aggregator", free_port()
    fx(root, "workspace", "create", "--prefix", agg, "--template", "numpy_linear")
    plan = (agg / "plan/plan.yaml").read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}")
    (agg / "plan/plan.yaml").write_text(plan.replace("rounds: 20", "rounds: 2"))
    ready_to_serve(agg)
    mill = import_at(root, "mill")
    (mill / "data").mkdir()
    passed(TEMPLATES / "numpy_linear/data/mill.csv", mill / "data")
    fx(mill, "collaborator", "create", "-n", "mill", "-d", "data/mill.csv", "--silent")
    by_hand(agg, mill, "mill")
    fx(mill, "collaborator", "approve", "-n", "mill", "--silent")
    (mill / "site.yaml").write_text(SITE.format(address=f"localhost:{port}"))
    return root


class World:
    """The two workspaces of a test, and what it does to them."""

    def __init__(self, root: Path):
        self.agg, self.mill = Workspace(root / "aggregator"), Workspace(root / "mill")
        self.listener = None

    def close(self):
        if self.listener:
            self.listener.close()

    def side(self, name: str) -> Workspace:
        return self.agg if name == "aggregator" else self.mill

    def leaf(self, node, *, age=0.0, by=None, **told):
        """Put another leaf, for the same key, in place of `node`'s."""
        cert = self.side(node).cert
        role = "aggregator" if node == "aggregator" else "collaborator"
        about = {"role": role, "name": node, "federation": "line", "hosts": ("localhost",)} | told
        about["hosts"] = about["hosts"] if about["role"] == "aggregator" else ()
        request, authority = make_request(cert, node), by or load_authority(self.agg.cert)
        profile = PROFILES[about["role"]]
        leaf = issue(authority, request, Enrolment(**about), profile, time.time() - age)
        (cert / node / "chain.pem").write_bytes(leaf)

    def addresses(self, **changed):
        """Change addresses in plan.lock: they are not in its digest."""
        content = json.loads(self.agg.lock.read_text())
        content["addresses"] |= changed
        self.agg.lock.write_text(json.dumps(content))

    def edit(self, name, file, old, new):
        path = self.side(name).root / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    def roster(self):
        install_roster(self.mill.cert, (self.agg.cert / "roster.json").read_bytes())

    def revoke(self):
        open_office(self.agg.cert).revoke("mill", "stolen", time.time())
        self.roster()

    def forgotten(self):
        """A roster of before mill was enrolled."""
        create_office(self.agg.root / "new", "line", time.time())
        shutil.rmtree(self.agg.cert / "authority")
        shutil.move(self.agg.root / "new" / "authority", self.agg.cert / "authority")
        public = (self.agg.cert / "authority/authority.pem").read_bytes()
        (self.mill.cert / "authority.pem").write_bytes(public)
        shutil.copy(self.agg.root / "new" / "roster.json", self.mill.cert / "roster.json")
        self.leaf("mill")

    def signature(self, digest=None):
        key = load_identity_key(self.agg.cert, "aggregator")
        signed = sign_digest(
            "signature", digest or read_lock(self.agg.lock).digest, "line", "aggregator", key, 1.0
        )
        write_whole(self.agg.root / "plan/plan.sig", signed.data())

    def huge(self, *shape):
        lock = read_lock(self.agg.lock)
        entry = Spec("slope", "float32", shape or (1 << 20, 1 << 25))
        write_lock(self.agg.lock, make_lock(lock.plan, lock.files, lock.model_digest, (entry,)))


def key_file(world, name, file) -> Path:
    return world.side(name).cert / name / file


def swapped(world, name, file, content):
    path = key_file(world, name, file)
    path.write_bytes(content)


def taken(world):
    world.listener = socket.create_server(("127.0.0.1", 0))
    world.addresses(listen=f"127.0.0.1:{world.listener.getsockname()[1]}")


def gone(path: Path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


AGG, MILL = "aggregator", "mill"
APPROVAL = "approved/{}/mill.json"
LOCAL = {
    # fault: (side, how to make it, code, words, exit code)
    "a key that no plan has": (
        AGG,
        lambda w: w.edit(AGG, "plan/plan.yaml", "rounds:", "round:"),
        "P01",
        "plan/plan.yaml:",
        2,
    ),
    "no plan.lock": (AGG, lambda w: gone(w.agg.lock), "P19", "not there yet", 2),
    "a plan.lock changed by hand": (
        AGG,
        lambda w: w.edit(AGG, "plan/plan.lock", '"rounds": 2', '"rounds": 3'),
        "P19",
        "its content gives",
        2,
    ),
    "a plan changed later": (
        AGG,
        lambda w: w.edit(AGG, "plan/plan.yaml", "rounds: 2", "rounds: 3"),
        "P30",
        "rounds",
        0,
    ),
    "other code": (
        MILL,
        lambda w: w.edit(MILL, "src/linear.py", "import", "\nimport"),
        "P20",
        "src/linear.py",
        2,
    ),
    "a damaged signature": (
        AGG,
        lambda w: (w.signature(), w.edit(AGG, "plan/plan.sig", '"at":1.0', '"at":2.0')),
        "R20",
        "plan/plan.sig",
        6,
    ),
    "another plan's signature": (AGG, lambda w: w.signature("a" * 64), "R21", "aaaaaaaa", 6),
    "no approval": (MILL, lambda w: gone(w.mill.root / "approved"), "R23", "-n mill", 6),
    "a damaged approval": (
        MILL,
        lambda w: (w.mill.root / APPROVAL.format(read_lock(w.mill.lock).digest)).write_text("{}"),
        "R22",
        "does not count",
        6,
    ),
    "a key open to others": (
        MILL,
        lambda w: key_file(w, MILL, "node.key").chmod(0o644),
        "C11",
        "found 0644",
        3,
    ),
    "a folder open to others": (
        AGG,
        lambda w: (w.agg.cert / AGG).chmod(0o755),
        "C11",
        "found 0755",
        3,
    ),
    "no key": (MILL, lambda w: gone(key_file(w, MILL, "identity.key")), "C12", "identity.key", 3),
    "no certificate": (MILL, lambda w: gone(key_file(w, MILL, "chain.pem")), "C12", "chain.pem", 3),
    "a key that is none": (
        MILL,
        lambda w: swapped(w, MILL, "node.key", b"no key"),
        "C01",
        "node.key",
        3,
    ),
    "a key of another certificate": (
        MILL,
        lambda w: swapped(w, MILL, "node.key", create_key()),
        "C10",
        "'mill'",
        3,
    ),
    "an expired certificate": (MILL, lambda w: w.leaf(MILL, age=31 * DAY), "C05", "24.0 h ago", 3),
    "a certificate of tomorrow": (MILL, lambda w: w.leaf(MILL, age=-DAY), "C06", "future", 3),
    "a certificate that ends soon": (
        AGG,
        lambda w: w.leaf(AGG, age=21 * DAY),
        "U63",
        "ends in 9.0 days, of 30.0",
        0,
    ),
    "another authority's certificate": (
        MILL,
        lambda w: w.leaf(MILL, by=THEIRS),
        "C07",
        "not issued by this authority",
        3,
    ),
    "another node's certificate": (
        MILL,
        lambda w: w.leaf(MILL, name="farm"),
        "C08",
        "expected name 'mill', found 'farm'",
        3,
    ),
    "a certificate of the wrong role": (
        MILL,
        lambda w: w.leaf(MILL, role="aggregator"),
        "C09",
        "expected role 'collaborator'",
        3,
    ),
    "a host that the certificate lacks": (
        AGG,
        lambda w: w.addresses(advertise=["localhost", "fl.example"]),
        "C22",
        "does not name fl.example, which",
        3,
    ),
    "no roster": (MILL, lambda w: gone(w.mill.cert / "roster.json"), "C12", "roster.json", 3),
    "a roster changed by hand": (
        MILL,
        lambda w: w.edit(MILL, "cert/roster.json", '"mill"', '"will"'),
        "C37",
        "not signed by this authority",
        3,
    ),
    "a revoked node": (MILL, World.revoke, "C18", "mill is revoked", 3),
    "a node that the roster does not have": (MILL, World.forgotten, "C32", "has no mill", 3),
    "another identity key": (
        AGG,
        lambda w: swapped(w, AGG, "identity.key", create_identity_key()),
        "C30",
        "another identity key",
        3,
    ),
    "a damaged record of the authority": (
        AGG,
        lambda w: (w.agg.cert / "authority/record.jsonl").write_text("{}\n"),
        "C36",
        "record.jsonl",
        3,
    ),
    "site.yaml with an unknown key": (
        MILL,
        lambda w: w.edit(MILL, "site.yaml", "data:", "date:"),
        "P01",
        "site.yaml:2",
        2,
    ),
    "a plan beyond the site's limits": (
        MILL,
        lambda w: w.edit(MILL, "site.yaml", "data:", "limits: {rounds: 1}\ndata:"),
        "R30",
        "limits.rounds",
        6,
    ),
    "no data": (MILL, lambda w: gone(w.mill.root / "data"), "U62", "data/mill.csv", 2),
    "a file of the future": (
        AGG,
        lambda w: os.utime(w.agg.lock, (time.time() + 300,) * 2),
        "U65",
        "s in this clock's future",
        0,
    ),
    "a model larger than the disk": (AGG, World.huge, "U68", "4 times the model", 1),
    "no port": (AGG, lambda w: w.addresses(listen="127.0.0.1:0"), "U17", "127.0.0.1:0", 2),
    "a port that is taken": (AGG, taken, "T02", "the port is in use, not by", 4),
    "an address of another machine": (
        AGG,
        lambda w: w.addresses(listen="203.0.113.1:50051"),
        "T03",
        "cannot listen on 203.0.113.1",
        4,
    ),
}
AS_WELL = {  # what else is wrong then
    "a key that no plan has": {"P06"},
    "site.yaml with an unknown key": {"P06"},
    "no port": {"P30"},  # the lock has it, plan.yaml another
    "a port that is taken": {"P30"},
    "an address of another machine": {"P30"},
}


# -- the network -----------------------------------------------------------------------------------


@contextmanager
def raw_server(talk):
    """A server of plain sockets: `talk(connection)` in a thread, one connection after another."""

    def accept():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(OSError):
                talk(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def silent(connection):
    while connection.recv(4096):
        pass


def http(connection):
    connection.recv(4096)
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def tls(node, folder, alpn="h2", **options):
    """A TLS server that is no gRPC server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / "server.pem").write_bytes(node.chain_pem + node.key_pem)
    context.load_cert_chain(folder / "server.pem")
    context.set_alpn_protocols([alpn])
    for name, value in options.items():
        setattr(context, name, value)

    def talk(connection):
        with context.wrap_socket(connection, server_side=True) as wrapped:
            silent(wrapped)

    return raw_server(talk)


def node(by, role="aggregator", name="aggregator", age=0.0, hosts=("localhost",)) -> Identity:
    key = create_key()
    enrolment = Enrolment("line", role, name, hosts if role == "aggregator" else ())
    request = create_request(name, key, create_identity_key())
    leaf = issue(by, request, enrolment, PROFILES[role], time.time() - age)
    return Identity(key, leaf, by.certificate, inspect(leaf))


class Aggregator:
    """Greets as the real one does; `change` is done to each stamp before it is judged."""

    def __init__(self, lock, change=lambda stamp: stamp, answers=True):
        self.lock, self.change, self.answers = lock, change, answers

    async def hello(self, peer, hello):
        if not self.answers:
            await asyncio.Event().wait()
        admit(self.lock, "", peer, self.change(hello.stamp))
        return Welcome(Stamp("line", "run-1", self.lock.digest, "x"), RunState.RUNNING, 1.0)

    next = report = renew = pull = push_offset = push_blocks = hello


def ours(world, **options) -> Identity:
    return node(load_authority(world.agg.cert), **options)


SERVERS = {
    # fault: (server, code, words, exit code)
    "plaintext": (lambda w, at: raw_server(http), "T07", "does not speak TLS", 4),
    "silent": (lambda w, at: raw_server(silent), "T06", "firewall", 4),
    "hangs up": (lambda w, at: raw_server(lambda connection: None), "T09", "closed", 4),
    "TLS 1.2": (
        lambda w, at: tls(ours(w), at, maximum_version=ssl.TLSVersion.TLSv1_2),
        "T08",
        "refuses TLS 1.3",
        4,
    ),
    "a web server": (lambda w, at: tls(ours(w), at, "http/1.1"), "T10", "gRPC", 4),
    "another authority's": (lambda w, at: tls(node(THEIRS), at), "C21", "not issued by our", 3),
    "a site's": (
        lambda w, at: tls(ours(w, role="collaborator", name="farm"), at),
        "C23",
        "collaborator 'farm'",
        3,
    ),
    "of another host": (
        lambda w, at: tls(ours(w, hosts=("fl.example",)), at),
        "C22",
        "does not name 'localhost'; it names fl.example",
        3,
    ),
    "expired": (lambda w, at: tls(ours(w, age=31 * DAY), at), "C20", "out of date", 3),
}


def stranger(world) -> Identity:
    """Our aggregator, which trusts another authority than the one that certified the sites."""
    identity = load_identity(world.agg.cert, "aggregator")
    return replace(identity, authority_pem=THEIRS.certificate)


def revoked(peer) -> bool:
    return True


def without_mill(lock):
    plan = lock.plan.model_copy(update={"collaborators": ("farm",)})
    return replace(lock, plan=plan)


GREETINGS = {
    # fault: (what it serves, how it serves, code, words, exit code)
    "another plan": (
        lambda lock: Aggregator(replace(lock, digest="b" * 64)),
        {},
        "R01",
        "expected plan bbbbbbbb",
        6,
    ),
    "a plan without us": (lambda lock: Aggregator(without_mill(lock)), {}, "R02", "mill is not", 6),
    "another protocol": (
        lambda lock: Aggregator(lock, lambda stamp: replace(stamp, protocol=(1, 0))),
        {},
        "R10",
        "mill speaks 1",
        6,
    ),
    "a revoked certificate": (Aggregator, {"denied": revoked}, "C18", "no longer admitted", 3),
    "no answer": (lambda lock: Aggregator(lock, answers=False), {}, "T12", "did not answer", 4),
}


@asynccontextmanager
async def aggregator(world, make, **options):
    identity = load_identity(world.agg.cert, "aggregator")
    identity = options.pop("identity", identity)
    async with serve(make(read_lock(world.agg.lock)), identity, "127.0.0.1:0", **options) as server:
        yield f"localhost:{server.port}"
