"""A real aggregator process over mTLS, honest collaborators, and one who is not.

Honest sites are the real agent on a real connection; what they train is `Toy` of the unit tests.
"""

import asyncio
import json
import queue
import re
import resource
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from openfed.assemble import make_agent
from openfed.node.trainer import DirectTrainer
from openfed.pki.files import ensure_federation, load_identity
from openfed.plan.lock import code_files, make_lock, write_lock
from openfed.tensors.model_file import read_model
from openfed.transport.grpc import GrpcLink
from openfed.transport.retry import Policy, retrying
from tests.unit.node.conftest import Lab, Toy

PATIENT = Policy(first_s=0.05, most_s=0.5, deadline_s=60.0)


def make_world(root: Path, sites, **plan) -> Lab:
    """A workspace with a frozen plan and certificates for these sites."""
    toys = {name: Toy(step, n) for name, (step, n) in sites.items()}
    made = Lab(root, toys, **plan)
    lock = made.lock
    made.lock = make_lock(lock.plan, code_files(root), lock.model_digest, lock.signature)
    write_lock(root / "plan" / "plan.lock", made.lock)
    ensure_federation(root / "cert", "lab", ("localhost",), tuple(sites), time.time())
    return made


class Aggregator:
    """The process, what it says, and what the kernel says of it."""

    def __init__(self, world: Lab, *, files: int = 0) -> None:
        self.world, self.events, self._ended = world, [], False
        self._news = queue.SimpleQueue()
        self.log = world.root / "aggregator.log"
        words = ["aggregator", "--workspace", world.root, "--run", "r1", "--listen", "127.0.0.1:0"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "openfed.launch.node", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        if files:
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (files, files))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        address = self.wait_for("listening")["address"]
        self.port = int(address.rpartition(":")[2])

    def _read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            self.events.append(event)
            self._news.put(event)
        self._news.put({"event": "ended"})

    def wait_for(self, kind, within_s=60.0, **fields) -> dict:
        """The first event from here on of that kind with these fields."""
        end = time.monotonic() + within_s
        while True:
            event = self._news.get(timeout=max(0.01, end - time.monotonic()))
            if event["event"] == kind and fields.items() <= event.items():
                return event
            assert event["event"] != "ended", self.log.read_text()[-4000:]

    def of(self, kind):
        return [event for event in self.events if event["event"] == kind]

    def _memory(self, what: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{what}:\s+(\d+) kB", status)[1]) << 10

    def rss(self) -> int:
        """Bytes of memory now; from here on `peak` begins anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")
        return self._memory("VmRSS")

    def peak(self) -> int:
        """The most bytes of memory since `rss` was last asked."""
        return self._memory("VmHWM")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def link(self, name: str) -> GrpcLink:
        return GrpcLink(f"localhost:{self.port}", load_identity(self.world.root / "cert", name))

    def finish(self) -> int:
        return self.process.wait(60)

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reader.join(10)
        self.process.stdout.close()
        with suppress(OSError):
            self.process.stdin.close()


@contextmanager
def aggregator(world: Lab, **settings):
    made = Aggregator(world, **settings)
    try:
        yield made
    finally:
        made.close()


async def take_part(server: Aggregator, name: str):
    """An honest site, until the run has ended: how, and why."""
    link = retrying(server.link(name), PATIENT)
    world = server.world
    agent = make_agent(
        world.root, world.lock, name, link, DirectTrainer(world.toys[name]), lambda text: None
    )
    try:
        return await agent.run()
    finally:
        await link.close()


def last_digest(world: Lab) -> str:
    return json.loads((world.root / "save" / "manifest.json").read_text())["models"]["last"][
        "digest"
    ]


async def honest_run(server: Aggregator, *names: str):
    return await asyncio.gather(*(take_part(server, name) for name in names))


def last_model(world: Lab):
    return read_model(world.root / "save" / "toy_last.safetensors")
