"""Carries out what a schedule says. Each fault is a context: it is undone when the context ends.

What a fault did is counted in `Done`: a kill that found no process is none.
"""

import asyncio
import os
import resource
import secrets
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import monotonic, sleep

from openfed.errors import OpenFedError
from openfed.pki.files import load_identity
from openfed.plan.lock import read_lock
from openfed.transport.grpc import GrpcLink
from openfed.wire.messages import Report, Ruling, Stamp
from tests.faults import network
from tests.faults.federation import Federation
from tests.faults.network import DOWN, UP, Proxies, Site
from tests.faults.schedule import Fault

PAGE = 4096
STARTING_S = 20.0


@dataclass
class Done:
    """`faults`: those that took effect, by kind; `seen`: what of them could be counted."""

    faults: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)  # answers that no fault excuses


@dataclass
class Field:
    """Where faults are put. `sites` and `mounted`: only with root."""

    nodes: Federation
    proxies: Proxies
    address: str  # of the aggregator, past the proxies
    sites: Mapping[str, Site]
    mounted: bool
    netem: bool
    done: Done


class Missed(Exception):
    """There was nothing to do it to."""


Nemesis = Callable[[Field, Fault], Iterator[None]]


def play(place: Field, faults: tuple[Fault, ...], began: float, stop: threading.Event) -> None:
    """Do one after the other at its time, until the run is over."""
    for fault in faults:
        if stop.wait(max(0.0, began + fault.at_s - monotonic())):
            return
        try:
            with contextmanager(NEMESES[fault.kind])(place, fault):
                place.done.faults[fault.kind] += 1
                stop.wait(fault.seconds)
        except Missed:
            place.done.missed[fault.kind] += 1


def _pid(place: Field, node: str) -> int:
    """Of a node; one that is just being started is waited for."""
    end = monotonic() + STARTING_S
    while (pid := place.nodes.pid(node)) is None:
        if monotonic() > end or place.nodes.ended():
            raise Missed
        sleep(0.02)
    return pid


def kill(place: Field, fault: Fault) -> Iterator[None]:
    with _there():
        os.kill(_pid(place, fault.target), signal.SIGKILL)
    place.done.seen[f"killed {fault.target.partition(' ')[0]}"] += 1
    yield


@contextmanager
def _there() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        raise Missed from None


def pause(place: Field, fault: Fault) -> Iterator[None]:
    pid = _pid(place, fault.target)
    with _there():
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def no_memory(place: Field, fault: Fault) -> Iterator[None]:
    """Whatever a process asks for beyond what it has and a little more, it does not get."""
    pid = _pid(place, fault.target)
    with _there():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        most = pages * PAGE + (int(fault.amount) << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            free = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.prlimit(pid, resource.RLIMIT_AS, free)


def clock(place: Field, fault: Fault) -> Iterator[None]:
    folder = place.nodes.folders[fault.target]
    offset = folder.parent / "clocks" / fault.target / "offset"
    _replace(offset, f"{fault.amount:.0f}")
    try:
        yield
    finally:
        _replace(offset, "0")


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(".offset")
    beside.write_text(text)
    os.replace(beside, path)


def disk_full(place: Field, fault: Fault) -> Iterator[None]:
    ballast = place.nodes.folders[fault.target] / "ballast"
    with suppress(OSError), open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, PAGE):
            with suppress(OSError):
                while file.write(b"\0" * size) == size:
                    pass
    try:
        yield
    finally:
        ballast.unlink()


def read_only(place: Field, fault: Fault) -> Iterator[None]:
    """Its file system is read-only when a node comes back. (A kernel refuses to make it so while a
    file is open for writing, and nodes have one open at all times.)"""
    name = fault.target
    folder = str(place.nodes.folders[name])
    place.nodes.hold(name)
    network.sh("mount", "-o", "remount,ro", folder)
    place.nodes.let_go(name)
    try:
        yield
    finally:
        place.nodes.hold(name)
        network.sh("mount", "-o", "remount,rw", folder)
        place.nodes.let_go(name)


# -- lines -----------------------------------------------------------------------------------------


def reset(place: Field, fault: Fault) -> Iterator[None]:
    way = place.proxies.ways[fault.target]
    place.proxies.change(lambda: setattr(way, "left", int(fault.amount)))
    yield


def stall(direction: str, place: Field, fault: Fault) -> Iterator[None]:
    event = place.proxies.ways[fault.target].going[direction]
    place.proxies.change(event.clear)
    try:
        yield
    finally:
        place.proxies.change(event.set)


def latency(place: Field, fault: Fault) -> Iterator[None]:
    way = place.proxies.ways[fault.target]
    site = place.sites.get(fault.target) if place.netem else None
    if site:
        network.slow_down(site, fault.amount)
    else:
        place.proxies.change(lambda: setattr(way, "delay_s", fault.amount / 1000))
    try:
        yield
    finally:
        if site:
            network.unqueue(site)
        else:
            place.proxies.change(lambda: setattr(way, "delay_s", 0.0))


def lose(directions: tuple[str, ...], place: Field, fault: Fault) -> Iterator[None]:
    """All packets, or a share of them."""
    site, share = place.sites[fault.target], fault.amount / 100 or 1.0
    for direction in directions:
        network.drop(site, direction, share)
    try:
        yield
    finally:
        for direction in directions:
            place.done.seen["packets dropped"] += network.pass_again(site, direction, share)


def rate(place: Field, fault: Fault) -> Iterator[None]:
    site = place.sites[fault.target]
    network.throttle(site, fault.amount)
    try:
        yield
    finally:
        network.unqueue(site)


# -- duplicates ------------------------------------------------------------------------------------


def duplicate(place: Field, fault: Fault) -> Iterator[None]:
    """Report once more what the site has reported, with its own key; it must not count again."""
    rulings, end = list[str](), monotonic() + STARTING_S
    while not rulings:
        if monotonic() > end or place.nodes.ended():
            raise Missed
        reported = _reported(place.nodes.folders[fault.target], fault.target)
        rulings = asyncio.run(_report_again(place, fault.target, reported[-int(fault.amount) :]))
        sleep(0.02)
    place.done.seen.update(f"duplicate: {ruling}" for ruling in rulings)
    for ruling in rulings:
        if ruling == Ruling.ACCEPTED:
            place.done.wrong.append(f"{fault.target}: a report that was ruled on counts again")
    yield


def _reported(folder: Path, name: str) -> list[tuple[str, str, str, int]]:
    """Run, ask, digest and size of the replies that have a ruling, oldest first."""
    stores = sorted((folder / "runs").glob(f"*/agents/{name}/local.sqlite"))
    if not stores:
        return []
    with suppress(sqlite3.Error):
        db = sqlite3.connect(f"file:{stores[-1]}?mode=ro", uri=True, timeout=1)
        try:
            query = "select ask, digest, size from replies where ruling is not null order by rowid"
            run = stores[-1].parents[2].name
            return [(run, *row) for row in db.execute(query)]
        finally:
            db.close()
    return []


async def _report_again(
    place: Field, name: str, replies: list[tuple[str, str, str, int]]
) -> list[str]:
    folder = place.nodes.folders[name]
    lock = read_lock(folder / "plan" / "plan.lock")
    identity = load_identity(folder / "cert", name, federation=lock.plan.federation)
    link = GrpcLink(place.address, identity, server_name="localhost")
    rulings = []
    try:
        for run, ask, digest, size in replies:
            stamp = Stamp(lock.plan.federation, run, lock.digest, secrets.token_hex(8))
            report = Report(stamp, ask, digest, size)
            for attempt in (1, 2):
                again = replace(report, stamp=replace(stamp, attempt=attempt))
                verdict = await asyncio.wait_for(link.report(again), 5)
                rulings.append(str(verdict.ruling.value))
    except (OpenFedError, TimeoutError):
        pass  # the aggregator is away
    finally:
        await link.close()
    return rulings


NEMESES: Mapping[str, Nemesis] = {
    "kill": kill,
    "stop": pause,
    "duplicate": duplicate,
    "clock": clock,
    "memory": no_memory,
    "disk-full": disk_full,
    "read-only": read_only,
    "reset": reset,
    "stall-up": partial(stall, UP),
    "stall-down": partial(stall, DOWN),
    "latency": latency,
    "lose-up": partial(lose, (UP,)),
    "lose-down": partial(lose, (DOWN,)),
    "loss": partial(lose, (UP, DOWN)),
    "rate": rate,
}
