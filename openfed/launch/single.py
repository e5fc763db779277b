"""`fx aggregator start`, `fx collaborator start`: one node of a federation, in the foreground."""

import os
import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from openfed.errors import TaskError, UsageError
from openfed.launch.doctor import examine_here
from openfed.launch.federation import (
    AGGREGATOR,
    certificates,
    gone,
    note,
    only_one,
    site_specs,
    wrote,
)
from openfed.launch.findings import Level, refusal
from openfed.launch.keeper import TOLD, Apart
from openfed.launch.lifeline import run_until_stopped
from openfed.launch.node import load_lock, run_aggregator
from openfed.launch.places import Reached, dialled
from openfed.launch.processes import Line, Supervisor
from openfed.launch.sandbox import launcher, limits_of
from openfed.launch.sites import check_site, local_of, site_of
from openfed.launch.status import latest
from openfed.launch.trust import approval
from openfed.node.aggregator import Interrupted
from openfed.observe.files import recorder
from openfed.observe.text import both_ways
from openfed.observe.view import Event, Observe
from openfed.parse import split_address
from openfed.pki.files import may_issue
from openfed.plan.local import check_named, read_local
from openfed.plan.lock import Lock
from openfed.plan.site import remarks
from openfed.store.runs import Mode, RunInfo, choose_run, hold, runs
from openfed.typing import Emit
from openfed.wire.messages import RunState
from openfed.workspace import Workspace

STOPPED = 130


def start_aggregator(
    workspace: Workspace, mode: Mode, observe: Observe, listen: str | None = None
) -> int:
    """Serve the plan's run in this process until it ends; returns the exit code. `listen`: where,
    if not where the plan says.

    Raises: UsageError: U17 no port that collaborators could know, U20 another fx runs here. What
    `check_ready` does.
    """
    lock = dialable(workspace)
    own_runs(workspace)
    with only_one(workspace):
        return _aggregate(workspace, lock, mode, observe, listen)


def _aggregate(
    workspace: Workspace, lock: Lock, mode: Mode, observe: Observe, listen: str | None
) -> int:
    say = partial(note, observe)
    if mode != "new" and (failed := _failed(workspace, lock)):
        say(f"run {failed.id} of this plan {failed.status}: {failed.reason}")
        say("nothing to do: --new begins another run")
        return 1
    trial_certificates(workspace, lock, lock.plan.named, observe)
    chosen = choose_run(workspace.root, lock.digest, mode)
    if chosen.action != "complete":
        check_ready(workspace, AGGREGATOR, observe, LISTENING if listen else ())
    say(chosen.reason)
    if chosen.action == "complete":
        say("nothing to do: --new begins another run")
        return 0
    told: list[Event] = []
    where = listen or lock.listen
    with recorder(workspace.logs, resumed=chosen.action == "resume") as record:
        emit = _emitter(record, observe, told.append)
        emit("launched", {"command": "fx aggregator start"})
        try:
            state = run_until_stopped(
                lambda stop: run_aggregator(workspace.root, chosen.run, where, emit, stop)
            )
        except Interrupted as stopped:
            say(stopped.message)
            return STOPPED
    whole = latest(workspace)
    say(f"in all: {both_ways(whole.total('up'), whole.total('down'), raw=True)}")
    if state is RunState.COMPLETED:
        return 0
    return TaskError.exit_code if any(each["event"] == "task.failed" for each in told) else 1


def _failed(workspace: Workspace, lock: Lock) -> RunInfo | None:
    """The latest run, if it was of this plan and its plan or its sites failed it."""
    last = next(reversed(runs(workspace.root)), None)
    ended = last is not None and last.status not in ("running", "completed")
    return last if last and ended and last.plan_digest == lock.digest else None


def dialable(workspace: Workspace) -> Lock:
    """The frozen plan, with an address that is the same for all who read it.

    Raises: UsageError: U17 it has no port.
    """
    lock = load_lock(workspace.root)
    if not split_address(lock.listen)[1]:
        message = (
            f"expected a port in aggregator.listen, got {lock.listen}: give one in plan.yaml, "
            "then fx plan initialize"
        )
        raise UsageError("U17", message)
    return lock


LISTENING, TASK = ("T02", "T03"), ("U62", "U85", "R36")
"""Findings about what may be elsewhere: the plan's address to listen on; a site's data, and what
holds the code that sees it."""


def check_ready(
    workspace: Workspace, name: str, observe: Observe, elsewhere: tuple[str, ...] = ()
) -> None:
    """What `fx doctor` finds without dialling: warnings are told, the first failure is raised with
    its code, and the others below it. `elsewhere`: codes of what is not for here."""
    found = [each for each in examine_here(workspace, name) if each.code not in elsewhere]
    for each in found:
        if each.level is Level.WARN:
            note(observe, f"{each.what}: {each.code}  {each.found}. {each.remedy}")
    if error := refusal(found):
        raise error


def own_runs(workspace: Workspace) -> None:
    """`runs/` is its owner's alone, whatever the umask: sockets, models and updates lie below."""
    workspace.runs.mkdir(mode=0o700, exist_ok=True)
    workspace.runs.chmod(0o700)


def _emitter(*observers: Observe) -> Emit:
    """Passes events on to observers, one at a time: they come from several threads."""
    one = threading.Lock()

    def emit(kind: str, fields: Mapping[str, Any]) -> None:
        with one:
            for observe in observers:
                observe({"event": kind, "at": time.time(), **fields})

    return emit


def start_collaborator(
    workspace: Workspace, name: str, observe: Observe, *, apart: bool = False
) -> int:
    """Keep a collaborator's agent and task process going until the run ends. `apart`: its task
    process is in another container, where the data is, and a `keeper` starts it.

    Raises: UsageError: U16 not in the plan, U17 no port to dial. OpenFedError U21: the agent gave
    up, with its reason.
    """
    site = site_of(workspace)
    lock = dialable(workspace)
    check_named(lock.plan, name)
    if site is None:
        local = read_local(workspace.local, lock.plan.collaborators)
        if name not in local.sites:
            raise UsageError("U16", f"{workspace.local} does not say where the data of {name!r} is")
    else:
        local = local_of(site, name)
        check_site(workspace, site, lock)
        for line in remarks(site, lock.plan, lock):
            note(observe, line)
    trial_certificates(workspace, lock, (lock.plan.named or (name,)), observe)
    approval(workspace, lock, name)
    own_runs(workspace)
    check_ready(workspace, name, observe, TASK if apart else ())
    own = {name: local.sites[name]}
    launching = (
        Apart()
        if apart
        else launcher(workspace, own, local.device, local.isolation, limits_of(site))
    )
    address = site.address if site and site.address else dialled(lock.advertise[0], lock.listen)
    exchange = workspace.runs / "exchange" / name
    held = hold(exchange)  # also for `fx workspace import`: the plan is in use
    nodes = Supervisor(launching)
    try:
        for spec in site_specs(
            workspace, lock, local, name, Reached("", address), exchange, launching.isolation
        ):
            nodes.start(spec)
        code = _attend(nodes, workspace, name, observe)
        (exchange / TOLD).unlink(missing_ok=True)  # the run has ended: so a keeper knows
        return code
    finally:
        nodes.stop()
        os.close(held)


def _attend(nodes: Supervisor, workspace: Workspace, name: str, observe: Observe) -> int:
    """Pass on what the agent says until it ends for good."""
    last = ""
    for news in nodes.news():
        if isinstance(news, Line):
            last = news.text.decode(errors="replace").rstrip()
            note(observe, last)
        elif news.name == name and not nodes.returns(name):
            if news.code:
                raise gone(news, nodes.log(name), last)
            return 0
    raise AssertionError("news never end")


def trial_certificates(
    workspace: Workspace, lock: Lock, names: tuple[str, ...], observe: Observe
) -> None:
    """Issue what is missing where the authority is in this workspace, or there is none yet.

    Other nodes of the workspace may do the same at this moment.
    """
    if may_issue(workspace.cert):
        for line in wrote(workspace, certificates(workspace, lock, names)):
            note(observe, line)
