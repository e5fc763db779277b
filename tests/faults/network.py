"""The lines between the sites and their aggregator: a proxy each and, with root, a namespace each.

A site dials its own proxy, which passes everything on to the aggregator. With root, site k lives in
a network namespace of its own and reaches nothing but 10.77.k.1 over a pair of veth devices; what
iptables and tc do there happens to packets. All of it ends with this process's own namespace.
"""

import asyncio
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

UP, DOWN = "up", "down"
BURST = "16kb"


def sh(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Way:
    """One site's way to the aggregator through its proxy. Changed on the proxy's loop."""

    host: str
    port: int = 0
    delay_s: float = 0.0
    left: int | None = None  # bytes until everything that is open is reset
    resets: int = 0  # connections
    going: Mapping[str, asyncio.Event] = field(
        default_factory=lambda: {UP: asyncio.Event(), DOWN: asyncio.Event()}
    )
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    def count(self, size: int) -> None:
        if self.left is not None:
            self.left -= size
            if self.left <= 0:
                self.left = None
                self.reset()

    def reset(self) -> None:
        self.resets += len(self.open) // 2
        for writer in list(self.open):
            plug = writer.get_extra_info("socket")
            with suppress(OSError):
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()


class Proxies:
    """A thread with an event loop, and a listener for each site."""

    def __init__(self, hosts: Mapping[str, str], target: int) -> None:
        self.target = target
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.ways = {name: self._on_loop(self._listen(host)) for name, host in hosts.items()}

    @property
    def resets(self) -> int:
        return sum(way.resets for way in self.ways.values())

    def _on_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def change(self, do: Callable[[], Any]) -> None:
        """Call it on the loop, where nothing else happens meanwhile."""

        async def done() -> None:
            do()

        self._on_loop(done())

    async def _listen(self, host: str) -> Way:
        way = Way(host)
        for event in way.going.values():
            event.set()
        server = await asyncio.start_server(lambda r, w: self._met(way, r, w), host, 0)
        self._servers.append(server)
        way.port = server.sockets[0].getsockname()[1]
        return way

    async def _met(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        way.open |= {writer, there[1]}
        pumps = (_pump(way, UP, reader, there[1]), _pump(way, DOWN, there[0], writer))
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*pumps)
        way.open -= {writer, there[1]}

    def close(self) -> None:
        self._on_loop(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _leave(self) -> None:
        for server in self._servers:
            server.close()
        for way in self.ways.values():
            way.reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


async def _pump(
    way: Way, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Pass on what comes, late by the way's delay, until one side has gone: then both go."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def take() -> None:
        while data := await reader.read(1 << 14):
            waiting.put_nowait((loop.time() + way.delay_s, data))
        waiting.put_nowait((0.0, b""))

    taking = asyncio.create_task(take())
    try:
        while data := await _due(waiting, taking):
            await way.going[direction].wait()
            writer.write(data)
            await writer.drain()
            way.count(len(data))
    except OSError:
        pass
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        writer.close()


async def _due(
    waiting: "asyncio.Queue[tuple[float, bytes]]", taking: "asyncio.Task[None]"
) -> bytes:
    """The next piece, when it is due; nothing at the end. Raises: OSError: the sender has gone."""
    getting = asyncio.create_task(waiting.get())
    try:
        await asyncio.wait({getting, taking}, return_when=asyncio.FIRST_COMPLETED)
        if not getting.done() and taking.done() and waiting.empty():
            taking.result()
        due, data = await getting
    finally:
        getting.cancel()
    await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
    return data


# -- namespaces ----------------------------------------------------------------------------------


def can_namespace() -> bool:
    return os.geteuid() == 0


def into_namespaces(words: Sequence[str]) -> None:
    """Start again in network and mount namespaces of our own: what is done there ends with us."""
    os.execvp("unshare", ["unshare", "--net", "--mount", *words])


@dataclass(frozen=True)
class Site:
    """A network namespace, held by a process that sleeps, and the device on our side of it."""

    holder: subprocess.Popen[bytes]
    device: str
    inner: str
    host: str  # our address, as the site sees it

    @property
    def enter(self) -> tuple[str, ...]:
        """What starts a command in it."""
        return "nsenter", "-t", str(self.holder.pid), "--net"


def make_site(number: int) -> Site:
    """Namespace `number`: it reaches 10.77.number.1 and nothing else."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    site = Site(holder, f"of-{number}", f"of-{number}-in", f"10.77.{number}.1")
    sh("ip", "link", "set", "lo", "up")
    sh("ip", "link", "add", site.device, "type", "veth", "peer", "name", site.inner)
    _when_apart(holder.pid)
    sh("ip", "link", "set", site.inner, "netns", str(holder.pid))
    sh("ip", "link", "set", site.device, "gso_max_segs", "1")  # what is lost is a packet, no more
    sh(*site.enter, "ip", "link", "set", site.inner, "gso_max_segs", "1")
    sh("ip", "addr", "add", f"{site.host}/24", "dev", site.device)
    sh("ip", "link", "set", site.device, "up")
    sh(*site.enter, "ip", "link", "set", "lo", "up")
    sh(*site.enter, "ip", "addr", "add", f"10.77.{number}.2/24", "dev", site.inner)
    sh(*site.enter, "ip", "link", "set", site.inner, "up")
    return site


def _when_apart(pid: int) -> None:
    """Wait until the process has left our network namespace."""
    while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        os.sched_yield()


def rules(site: Site, direction: str, share: float) -> tuple[str, ...]:
    """iptables: this share of the packets in one direction is dropped."""
    chain, flag = ("INPUT", "-i") if direction == UP else ("OUTPUT", "-o")
    rare = ("-m", "statistic", "--mode", "random", "--probability", f"{share:.4f}")
    return (chain, flag, site.device, *(rare if share < 1 else ()), "-j", "DROP")


def drop(site: Site, direction: str, share: float = 1.0) -> None:
    sh("iptables", "-w", "-A", *rules(site, direction, share))


def pass_again(site: Site, direction: str, share: float = 1.0) -> int:
    """Undo `drop`; how many packets it has dropped."""
    chain = rules(site, direction, share)[0]
    listed = sh("iptables", "-w", "-nvxL", chain).splitlines()
    dropped = sum(int(line.split()[0]) for line in listed if site.device in line.split())
    sh("iptables", "-w", "-D", *rules(site, direction, share))
    return dropped


def throttle(site: Site, mbit: float) -> None:
    queue = ("root", "tbf", "rate", f"{mbit:g}mbit", "burst", BURST, "latency", "400ms")
    sh("tc", "qdisc", "replace", "dev", site.device, *queue)
    sh(*site.enter, "tc", "qdisc", "replace", "dev", site.inner, *queue)


def has_netem() -> bool:
    """Whether this kernel delays packets itself."""
    try:
        sh("tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except OSError:
        return False
    sh("tc", "qdisc", "del", "dev", "lo", "root")
    return True


def slow_down(site: Site, milliseconds: float) -> None:
    """Needs netem."""
    queue = ("root", "netem", "delay", f"{milliseconds:g}ms")
    sh("tc", "qdisc", "replace", "dev", site.device, *queue)
    sh(*site.enter, "tc", "qdisc", "replace", "dev", site.inner, *queue)


def unqueue(site: Site) -> None:
    """Undo `throttle` and `slow_down`."""
    sh("tc", "qdisc", "del", "dev", site.device, "root")
    sh(*site.enter, "tc", "qdisc", "del", "dev", site.inner, "root")
