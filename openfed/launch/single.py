"""`fx aggregator start`, `fx collaborator start`: one node of a federation, in the foreground."""

import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from openfed.errors import PlanError, TaskError, UsageError
from openfed.launch.federation import certificates, dialled, gone, note, site_specs, wrote
from openfed.launch.lifeline import run_until_stopped
from openfed.launch.node import load_lock, run_aggregator
from openfed.launch.processes import Line, Processes, Supervisor
from openfed.launch.sites import check_site, local_of, site_of
from openfed.launch.status import latest
from openfed.launch.trust import approval
from openfed.node.aggregator import Interrupted
from openfed.observe.files import recorder
from openfed.observe.text import both_ways
from openfed.observe.view import Event, Observe
from openfed.parse import split_address
from openfed.pki.files import may_issue
from openfed.plan.load import load_plan
from openfed.plan.local import read_local
from openfed.plan.lock import Lock
from openfed.plan.schema import canonical
from openfed.plan.site import remarks
from openfed.store.runs import Mode, RunInfo, choose_run, runs
from openfed.typing import Emit
from openfed.wire.messages import RunState
from openfed.workspace import Workspace

STOPPED = 130


def start_aggregator(workspace: Workspace, mode: Mode, observe: Observe) -> int:
    """Serve the plan's run in this process until it ends; returns the exit code.

    Raises: UsageError: U17 no port that collaborators could know.
    """
    lock = dialable(workspace, observe)
    own_runs(workspace)
    say = partial(note, observe)
    if mode != "new" and (failed := _failed(workspace, lock)):
        say(f"run {failed.id} of this plan {failed.status}: {failed.reason}")
        say("nothing to do: --new begins another run")
        return 1
    trial_certificates(workspace, lock, observe)
    chosen = choose_run(workspace.root, lock.digest, mode)
    say(chosen.reason)
    if chosen.action == "complete":
        say("nothing to do: --new begins another run")
        return 0
    told: list[Event] = []
    with recorder(workspace.logs, resumed=chosen.action == "resume") as record:
        emit = _emitter(record, observe, told.append)
        emit("launched", {"command": "fx aggregator start"})
        try:
            state = run_until_stopped(
                lambda stop: run_aggregator(workspace.root, chosen.run, lock.listen, emit, stop)
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


def dialable(workspace: Workspace, observe: Observe) -> Lock:
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
    if _outdated(workspace, lock):
        note(
            observe,
            "plan.lock was frozen from other settings than plan.yaml has now; "
            "fx plan initialize freezes it anew",
        )
    return lock


def own_runs(workspace: Workspace) -> None:
    """`runs/` is its owner's alone, whatever the umask: sockets, models and updates lie below."""
    workspace.runs.mkdir(mode=0o700, exist_ok=True)
    workspace.runs.chmod(0o700)


def _outdated(workspace: Workspace, lock: Lock) -> bool:
    """Whether plan.yaml says something else; `advertise` apart, which -a gives."""
    try:
        plan = load_plan(workspace.plan)
    except PlanError:
        return True
    same = canonical(plan) == canonical(lock.plan)
    return not same or plan.aggregator.listen != lock.listen


def _emitter(*observers: Observe) -> Emit:
    """Passes events on to observers, one at a time: they come from several threads."""
    one = threading.Lock()

    def emit(kind: str, fields: Mapping[str, Any]) -> None:
        with one:
            for observe in observers:
                observe({"event": kind, "at": time.time(), **fields})

    return emit


def start_collaborator(workspace: Workspace, name: str, observe: Observe) -> int:
    """Keep a collaborator's agent and task process going until the run ends.

    Raises: UsageError: U16 not in the plan, U17 no port to dial. OpenFedError U21: the agent gave
    up, with its reason.
    """
    site = site_of(workspace)
    lock = dialable(workspace, observe)
    if name not in lock.plan.collaborators:
        known = ", ".join(lock.plan.collaborators)
        raise UsageError("U16", f"{name!r} is no collaborator of the plan; it has: {known}")
    if site is None:
        local = read_local(workspace.local, lock.plan.collaborators)
    else:
        local = local_of(site, name)
        check_site(workspace, site, lock)
        for line in remarks(site, lock.plan, lock):
            note(observe, line)
    trial_certificates(workspace, lock, observe)
    approval(workspace, lock, name)
    own_runs(workspace)
    address = site.address if site and site.address else dialled(lock.advertise[0], lock.listen)
    exchange = workspace.runs / "exchange" / name
    nodes = Supervisor(Processes())
    try:
        for spec in site_specs(workspace, lock, local, name, address, exchange):
            nodes.start(spec)
        return _attend(nodes, workspace, name, observe)
    finally:
        nodes.stop()


def _attend(nodes: Supervisor, workspace: Workspace, name: str, observe: Observe) -> int:
    """Pass on what the agent says until it ends for good."""
    for news in nodes.news():
        if isinstance(news, Line):
            note(observe, news.text.decode(errors="replace").rstrip())
        elif news.name == name and not nodes.returns(name):
            if news.code:
                raise gone(news, nodes.log(name))
            return 0
    raise AssertionError("news never end")


def trial_certificates(workspace: Workspace, lock: Lock, observe: Observe) -> None:
    """Issue what is missing where the authority is in this workspace, or there is none yet.

    Other nodes of the workspace may do the same at this moment.
    """
    if may_issue(workspace.cert):
        for line in wrote(workspace, certificates(workspace, lock)):
            note(observe, line)
