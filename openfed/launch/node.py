"""A node as a process: the aggregator, or a collaborator's agent.

    python -m openfed.launch.node aggregator --workspace W --run ID --listen HOST:PORT
    python -m openfed.launch.node agent --workspace W --name N --address HOST:PORT --exchange DIR

The aggregator writes its events to standard output, one JSON object a line. Both stop, and leave
a run that can be resumed, when their standard input ends or at SIGTERM.
"""

import argparse
import asyncio
import ctypes
import gc
import json
import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from openfed.assemble import make_agent, make_aggregator, open_journal
from openfed.errors import CODES, OpenFedError, TransportError, exhausted
from openfed.failpoints import arm
from openfed.launch.lifeline import run_until_stopped, watch_lifeline
from openfed.launch.open_files import allow_files
from openfed.launch.sites import check_site, site_of
from openfed.launch.trust import LiveRoster, Shown, approval, beside, consent, keep_renewed, renewed
from openfed.node.aggregator import Interrupted
from openfed.node.handshakes import counted
from openfed.node.trainer import SocketTrainer
from openfed.pki.files import load_identity, load_identity_key
from openfed.pki.keys import signer
from openfed.pki.peer import AGGREGATOR
from openfed.pki.request import Request
from openfed.plan.lock import Lock, read_lock, verify_files
from openfed.store.runs import hold, run_folder
from openfed.transport.grpc import GrpcLink, serve
from openfed.transport.retry import Policy, retrying
from openfed.typing import Emit
from openfed.wire.messages import Renew, RunState, Stamp
from openfed.workspace import Workspace

T = TypeVar("T")
Said = Callable[[str], None]

SAID_AGAIN_S = 30.0


def load_lock(root: Path) -> Lock:
    """The workspace's frozen plan; the code beside it must be the code it was frozen with."""
    lock = read_lock(root / "plan" / "plan.lock")
    verify_files(root, lock)
    return lock


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc
KEPT_FREE = 16 << 20
"""Bytes of freed memory that stay at hand: the first touch of fresh memory is dear."""
SMALL = 5 << 20
"""Blocks and chunks lie in kept memory; what is larger goes back at once."""


def settle_in() -> None:
    """Once everything is imported, for a process that moves blocks of megabytes.

    The garbage collector need not look at what was imported again and again: that took 13 % of a
    node's CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for name, value in (
            (M_MMAP_THRESHOLD, SMALL),
            (M_TRIM_THRESHOLD, KEPT_FREE),
            (M_ARENA_MAX, 2),
        ):
            libc.mallopt(name, value)


async def run_aggregator(
    root: Path, run: str, listen: str, emit: Emit, stop: asyncio.Event
) -> RunState:
    """Serve a run until it ends.

    Raises: Interrupted when `stop` is set; CertificateError, TransportError, PlanError.
    """
    with counted(emit) as counting:
        return await _run_aggregator(root, run, listen, counting, stop)


async def _run_aggregator(
    root: Path, run: str, listen: str, emit: Emit, stop: asyncio.Event
) -> RunState:
    lock = load_lock(root)
    plan, workspace = lock.plan, Workspace(root)
    allow_files(len(plan.named) or plan.fewest)
    identity = load_identity(workspace.cert, "aggregator", federation=plan.federation)
    said = partial(_noted, emit)
    roster = LiveRoster(workspace.cert, said)
    renewing = partial(renewed, workspace, workspace.desk)
    key = signer(load_identity_key(workspace.cert, AGGREGATOR))
    held = hold(run_folder(root, run))
    journal = open_journal(root, run, lock, key)
    try:
        agreed = consent(workspace, lock, roster)
        aggregator, go = make_aggregator(
            root, lock, run, journal, emit, agreed, renewing, roster.now
        )
        own = Shown(identity)
        lives = partial(
            keep_renewed,
            workspace.cert,
            identity,
            lambda request: renewing(request, own.now().peer),
            own.show,
            said,
        )
        async with (
            serve(
                aggregator,
                identity,
                listen,
                denied=roster.denied,
                current=own.now,
                told=lambda fault: said(str(fault)),
            ) as server,
            beside(lives),
        ):
            host = listen.rpartition(":")[0]
            emit("listening", {"address": f"{host}:{server.port}"})
            emit("run.started", _about(lock, run, resumed=journal.turn() is not None))
            stopping = asyncio.create_task(_interrupt_when(stop, aggregator.interrupt))
            try:
                return (await go()).state
            finally:
                stopping.cancel()
    finally:
        journal.close()
        os.close(held)


def _noted(emit: Emit, text: str) -> None:
    emit("note", {"text": text})


def _about(lock: Lock, run: str, *, resumed: bool) -> dict[str, Any]:
    plan = lock.plan
    return {
        "run": run,
        "plan_digest": lock.digest,
        "federation": plan.federation,
        "name": plan.name,
        "rounds": plan.rounds,
        "collaborators": list(plan.named),
        "fewest": plan.fewest,
        "resumed": resumed,
    }


async def _interrupt_when(stop: asyncio.Event, interrupt: Callable[[str], None]) -> None:
    await stop.wait()
    interrupt("stopped before the run had ended: start it again to resume")


async def run_agent(
    root: Path,
    name: str,
    address: str,
    exchange: Path,
    said: Said,
    stop: asyncio.Event,
    server_name: str | None = None,
    isolation: str = "process",
) -> tuple[RunState, str]:
    """Take part in the aggregator's run until it ends; returns how and why.

    Raises: Interrupted when `stop` is set; TransportError, CertificateError, PolicyError.
    """
    lock, workspace = load_lock(root), Workspace(root)
    federation = lock.plan.federation
    identity = load_identity(workspace.cert, name, federation=federation, role="collaborator")
    approved, site = approval(workspace, lock, name), site_of(workspace)
    if site is not None:
        check_site(workspace, site, lock)
    exchange.mkdir(mode=0o700, parents=True, exist_ok=True)
    trainer = SocketTrainer(exchange, said)
    await trainer.start()
    dialled = GrpcLink(
        address, identity, server_name=server_name, proxy=site.proxy if site else None
    )
    patience = Policy(deadline_s=lock.plan.timeouts.connect)
    link = retrying(dialled, patience, told=_announced(said, address))
    roster = LiveRoster(workspace.cert, said).now()
    told = (_facts(isolation), approved, site, roster.identity(AGGREGATOR) if roster else None)
    agent = make_agent(root, lock, name, link, trainer, said, *told)
    renew = partial(_renew, dialled, lock)
    lives = partial(keep_renewed, workspace.cert, identity, renew, dialled.show, said)
    try:
        async with beside(lives):
            return await _until(stop, agent.run())
    finally:
        await trainer.close()
        await link.close()


async def _renew(link: GrpcLink, lock: Lock, request: Request) -> tuple[bytes, bytes]:
    stamp = Stamp(lock.plan.federation, "", lock.digest, secrets.token_hex(8))
    answer = await link.renew(Renew(stamp, request))
    return answer.chain, answer.anchors


def _announced(said: Said, address: str) -> Callable[[TransportError], None]:
    """Says what is waited for, and why: each cause the first time, then every half minute."""
    last: dict[str, float] = {}

    def told(fault: TransportError) -> None:
        now = time.monotonic()
        if now - last.get(fault.code, float("-inf")) > SAID_AGAIN_S:
            last[fault.code] = now
            said(f"waiting for the aggregator at {address}: {fault}. {CODES[fault.code].remedy}")

    return told


def _facts(isolation: str) -> Mapping[str, str]:
    return {"isolation": isolation, "python": sys.version.split()[0]}


async def _until(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Interrupted("S13", "stopped before the run had ended: start it again to resume")
        return working.result()
    finally:
        stopping.cancel()
        working.cancel()
        with suppress(asyncio.CancelledError, OpenFedError):
            await working


def _print_event(kind: str, fields: Mapping[str, Any]) -> None:
    line = json.dumps({"event": kind, "at": time.time(), **fields})
    sys.stdout.write(line + "\n")  # one write: events come from two threads
    sys.stdout.flush()


def _say(text: str) -> None:
    clock = time.strftime("%H:%M:%S")
    sys.stderr.write(f"{clock} {text}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="openfed.launch.node")
    roles = parser.add_subparsers(dest="role", required=True)
    aggregator, agent = roles.add_parser("aggregator"), roles.add_parser("agent")
    for each in (aggregator, agent):
        each.add_argument("--workspace", type=Path, required=True)
    aggregator.add_argument("--run", required=True)
    aggregator.add_argument("--listen", required=True)
    agent.add_argument("--name", required=True)
    agent.add_argument("--address", required=True)
    agent.add_argument("--server-name", help="in the aggregator's certificate, if not as dialled")
    agent.add_argument("--exchange", type=Path, required=True)
    agent.add_argument("--isolation", default="process", help="what holds the task process")
    return parser


def _serve_role(given: argparse.Namespace) -> int:
    if given.role == "aggregator":
        state = run_until_stopped(
            lambda stop: run_aggregator(
                given.workspace, given.run, given.listen, _print_event, stop
            )
        )
        return 0 if state is RunState.COMPLETED else 1
    run_until_stopped(
        lambda stop: run_agent(
            given.workspace,
            given.name,
            given.address,
            given.exchange,
            _say,
            stop,
            given.server_name,
            given.isolation,
        )
    )
    return 0


def main() -> None:
    """The process: every fault is a line on standard error and an exit code."""
    given = _parser().parse_args()
    try:
        watch_lifeline()
        settle_in()
        arm(os.environ)
        code = _serve_role(given)
    except Interrupted as error:
        _say(error.message)
        code = 130
    except OpenFedError as error:
        _say(str(error))
        code = error.exit_code
    except Exception as error:  # noqa: BLE001 (a bug of ours: the log must have it)
        if (told := exhausted(error)) is not None:
            _say(f"S12  {told}")
        else:
            traceback.print_exc()
        code = TransportError.exit_code if isinstance(error, ConnectionError) else 1
    sys.exit(code)


if __name__ == "__main__":
    main()
