"""Attacks on real aggregators: their handshakes fail, are counted by cause, and said."""

import asyncio
import fcntl
import json
import os
import pty
import queue
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress

import pytest

from openfed.pki.authority import Enrolment, create_authority, issue
from openfed.pki.files import load_profiles
from openfed.pki.keys import create_identity_key, create_key
from openfed.pki.leaf import Identity, inspect
from openfed.pki.request import create_request
from openfed.transport.grpc import GrpcLink
from openfed.wire.messages import Hello, RunState, Stamp

HELLO = Hello(Stamp("fed", "", "d" * 64, "op"))
DAY = 86400.0
PROFILES = load_profiles()
OURS, THEIRS = create_authority("fed", time.time()), create_authority("fed", time.time())


def identity(role="collaborator", name="one", *, by=OURS, age=0.0) -> Identity:
    profile = PROFILES[role]
    hosts = ("localhost",) if "server_auth" in profile.usages else ()
    key, now = create_key(profile.key), time.time() - age
    request = create_request(name, key, create_identity_key())
    leaf = issue(by, request, Enrolment("fed", role, name, hosts), profile, now)
    return Identity(key, leaf, by.certificate, inspect(leaf))


AGGREGATOR, ONE = identity("aggregator", "aggregator"), identity()

SERVER = """
import asyncio, json, sys
from pathlib import Path
from openfed.node.handshakes import counted
from openfed.pki.leaf import Identity, inspect
from openfed.transport.grpc import serve
from openfed.wire.messages import RunState, Welcome

class Service:
    async def hello(self, peer, hello):
        return Welcome(hello.stamp, RunState.RUNNING, 1.0)

    next = report = renew = pull = push_offset = push_blocks = hello

def say(kind, fields):
    sys.stdout.write(json.dumps({"event": kind, **fields}) + "\\n")
    sys.stdout.flush()

async def main():
    key, chain, anchors = (Path(name).read_bytes() for name in sys.argv[1:])
    node = Identity(key, chain, anchors, inspect(chain))
    with counted(say) as emit:
        async with serve(Service(), node, "127.0.0.1:0") as server:
            emit("listening", {"port": server.port})
            while word := await asyncio.to_thread(sys.stdin.readline):
                print("told", word.strip(), file=sys.stderr)
                emit("told", {"word": word.strip()})

asyncio.run(main())
"""


class Server:
    """A process that serves, and what it says."""

    def __init__(self, folder, **settings) -> None:
        names = ("key", "chain", "anchors")
        parts = (AGGREGATOR.key_pem, AGGREGATOR.chain_pem, AGGREGATOR.authority_pem)
        for name, pem in zip(names, parts, strict=True):
            (folder / name).write_bytes(pem)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", SERVER, *(folder / name for name in names)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                **({"stderr": log} | settings),
            )
        self.counts, self.failures = Counter(), 0
        self._news = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port = self.wait_for("listening")["port"]

    def _read(self):
        for line in self.process.stdout:
            self._news.put(json.loads(line))
        self._news.put({"event": "ended"})

    def wait_for(self, kind, **fields) -> dict:
        """The first event from here on of that kind with these fields."""
        while True:
            event = self._news.get(timeout=60)
            if event["event"] == "handshake.failed":
                self.failures += 1
                self.counts[event["cause"]] = event["count"]
            if event["event"] == kind and fields.items() <= event.items():
                return event
            assert event["event"] != "ended" or kind == "ended", self.log.read_text()

    def tell(self, word):
        self.process.stdin.write(f"{word}\n".encode())
        self.process.stdin.flush()
        self.wait_for("told", word=word)

    def end(self) -> dict:
        """The exact counts."""
        self.process.stdin.close()
        self.wait_for("ended")
        assert self.process.wait(30) == 0
        return dict(self.counts)

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        with suppress(OSError):
            self.process.stdin.close()


@contextmanager
def serving(folder, **settings):
    server = Server(folder, **settings)
    try:
        yield server
    finally:
        server.close()


# -- the attackers ---------------------------------------------------------------------------------


def hung_up_on(connection) -> None:
    """Waits for the other side to say goodbye, whichever way."""
    with suppress(ConnectionResetError, ssl.SSLError):
        while connection.recv(4096):
            pass


def dialling_tls(node, **options):
    def attack(port, folder):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if node:
            path = folder / "attacker.pem"
            path.write_bytes(node.chain_pem + node.key_pem)
            context.load_cert_chain(path)
        for option, value in options.items():
            setattr(context, option, value)
        with (
            socket.create_connection(("127.0.0.1", port), 30) as plain,
            suppress(ConnectionResetError, ssl.SSLError),
            context.wrap_socket(plain) as tls,
        ):
            hung_up_on(tls)

    return attack


def saying(words):
    def attack(port, folder):
        with socket.create_connection(("127.0.0.1", port), 30) as plain:
            plain.sendall(words)
            hung_up_on(plain)

    return attack


def scanning(port, folder):
    """Connects, and closes."""
    socket.create_connection(("127.0.0.1", port), 30).close()


OLD_TLS = {"maximum_version": ssl.TLSVersion.TLSv1_2}
DISTRUSTFUL = {"verify_mode": ssl.CERT_REQUIRED}
ATTACKS = {
    "no certificate": (dialling_tls(None),),
    "unknown authority": (dialling_tls(identity(by=THEIRS)),),
    "expired certificate": (dialling_tls(identity(age=31 * DAY)),),
    "certificate not yet valid": (dialling_tls(identity(age=-DAY)),),
    "certificate of another role": (dialling_tls(AGGREGATOR),),
    "TLS before 1.3": (dialling_tls(ONE, **OLD_TLS),),
    "not TLS": (
        saying(b"GET / HTTP/1.1\r\n\r\n"),
        saying(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
        saying(b"SSH-2.0-OpenSSH_9.0\r\n"),
        saying(bytes(200)),
        saying(bytes(range(255, 55, -1))),
    ),
    "broken off by the peer": (dialling_tls(ONE, **DISTRUSTFUL),),
}


def reset(port, folder):
    """Connects, and is gone without a goodbye."""
    with socket.create_connection(("127.0.0.1", port), 30) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def greet(port) -> RunState:
    link = GrpcLink(f"localhost:{port}", ONE)
    try:
        return (await asyncio.wait_for(link.hello(HELLO), 30)).state
    finally:
        await link.close()


@pytest.mark.parametrize("verbosity", [None, "none"])
def test_every_attack_is_counted_by_its_cause_and_a_port_scan_as_none(tmp_path, verbosity):
    env = {k: v for k, v in os.environ.items() if k != "GRPC_VERBOSITY"}
    env |= {"GRPC_VERBOSITY": verbosity} if verbosity else {}
    with serving(tmp_path, env=env) as server:
        for cause, attacks in ATTACKS.items():
            for attack in attacks * 2:
                attack(server.port, tmp_path)
            server.wait_for("handshake.failed", cause=cause)
            scanning(server.port, tmp_path)
            reset(server.port, tmp_path)
        assert asyncio.run(greet(server.port)) is RunState.RUNNING
        counts = server.end()
    assert counts == {cause: 2 * len(attacks) for cause, attacks in ATTACKS.items()}


def test_a_flood_makes_few_events_and_few_lines_while_a_good_client_goes_on(tmp_path):
    plain, unknown = saying(b"GET / HTTP/1.1\r\n\r\n"), dialling_tls(identity(by=THEIRS))

    def flood(port, attack, times):
        for _ in range(times):
            attack(port, tmp_path)

    async def calls(port, flooding) -> int:
        """How many calls were answered, over one connection, before the flood ended."""
        link, count = GrpcLink(f"localhost:{port}", ONE), 0
        try:
            while not all(each.done() for each in flooding) or count < 10:
                answer = await asyncio.wait_for(link.hello(HELLO), 30)
                assert answer.state is RunState.RUNNING
                count += 1
        finally:
            await link.close()
        return count

    async def main(port):
        flooding = [
            asyncio.create_task(asyncio.to_thread(flood, port, attack, times))
            for attack, times in ((plain, 100), (plain, 100), (unknown, 100))
        ]
        answered = await calls(port, flooding)
        await asyncio.gather(*flooding)
        return answered

    with serving(tmp_path) as server:
        assert asyncio.run(main(server.port)) >= 10
        assert server.end() == {"not TLS": 200, "unknown authority": 100}
        assert server.failures <= 2 * 9
        said = server.log.read_text().splitlines()
    assert len([line for line in said if "Handshake failed" in line]) == 8 + 7


def test_everything_else_on_standard_error_arrives_in_order(tmp_path):
    with serving(tmp_path) as server:
        for k in range(30):
            server.tell(str(k))
            saying(b"SSH-2.0-x\r\n")(server.port, tmp_path)
        assert server.end() == {"not TLS": 30}
        said = server.log.read_text().splitlines()
    assert [line for line in said if line.startswith("told")] == [f"told {k}" for k in range(30)]
    rest = [line for line in said if not line.startswith("told")]
    assert len(rest) == 5 and all("Handshake failed" in line for line in rest)


def test_a_stalled_standard_error_keeps_nobody_waiting(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    with serving(tmp_path, stderr=writing) as server:
        for _ in range(20):
            saying(b"SSH-2.0-x\r\n")(server.port, tmp_path)
            assert asyncio.run(greet(server.port)) is RunState.RUNNING
        assert server.end() == {"not TLS": 20}
    os.close(writing)
    os.close(reading)


# -- in a workspace --------------------------------------------------------------------------------


def attacked(here, port) -> None:
    """Two without a certificate, one that is no TLS."""
    for attack in (dialling_tls(None), saying(b"GET / HTTP/1.1\r\n\r\n"), dialling_tls(None)):
        attack(port, here.root)


def port_of(here) -> int:
    return int(re.search(r"127\.0\.0\.1:(\d+)", (here.root / "plan/plan.yaml").read_text())[1])


FOUND = {"no certificate": 2, "not TLS": 1}
SAID = "failed handshakes: 3 (no certificate 2, not TLS 1)"


def counted_in(here) -> bool:
    found = {event["cause"]: event["count"] for event in here.events("handshake.failed")}
    return found == FOUND


def test_fx_run_says_who_failed_while_it_runs_and_in_its_result(workspace):
    here = workspace.line()
    run = here.hold("run", "--json")
    attacked(here, port_of(here))
    here.wait_until(lambda: counted_in(here), "the counts")
    status = here.fx("status")
    assert SAID in status.stdout.splitlines()
    here.go()
    assert run.wait(60) == 0, here.said(run)
    told = here.said(run).splitlines()
    assert SAID in told
    assert json.loads(told[-1])["failed_handshakes"] == FOUND
    assert json.loads(here.fx("status", "--json").stdout)["failed_handshakes"] == FOUND
    assert (here.root / "logs/aggregator.log").read_text().count("Handshake failed") == 3


def test_fx_aggregator_start_says_them_on_its_terminal_which_stays_one(workspace):
    """Tables are drawn there, and a stopped aggregator that is started again counts on."""
    here = workspace.line()
    assert here.fx("plan", "initialize").returncode == 0
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    outer = {name: os.environ[name] for name in os.environ.keys() - {"COLUMNS", "LINES"}}
    settings = {"stderr": theirs, "env": {**outer, "TERM": "xterm-256color"}}
    first = here.start("aggregator", "start", **settings)
    os.close(theirs)
    shown = []

    def listen():
        with suppress(OSError):  # how a terminal says that nobody has its other end
            while block := os.read(ours, 1 << 16):
                shown.append(block)

    listening = threading.Thread(target=listen)
    listening.start()
    here.wait_until(lambda: here.events("run.started"), "the start of the run")
    attacked(here, port_of(here))
    here.wait_until(lambda: counted_in(here), "the counts")
    here.wait_until(lambda: SAID in b"".join(shown).decode(), "the tables")
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 130
    listening.join()
    os.close(ours)
    assert b"stopped before the run had ended" in b"".join(shown)
    again = here.start("aggregator", "start")
    here.wait_until(lambda: len(here.events("run.started")) == 2, "the second start")
    attacked(here, port_of(here))
    here.wait_until(lambda: SAID in here.said(again), "the counts since then")
    both = "failed handshakes: 6 (no certificate 4, not TLS 2)"
    here.wait_until(lambda: both in here.fx("status").stdout, "the counts of both lives")
