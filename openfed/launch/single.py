"""`fx aggregator start`, `fx collaborator start`: one node of a federation, in the foreground."""

import threading
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from openfed.errors import UsageError
from openfed.launch.federation import certificates, dialled, gone, note, site_specs, wrote
from openfed.launch.node import load_lock, run_aggregator, run_until_stopped
from openfed.launch.processes import Line, Processes, Supervisor
from openfed.node.aggregator import Interrupted
from openfed.observe.files import recorder
from openfed.observe.view import Observe
from openfed.plan.local import read_local
from openfed.plan.lock import Lock
from openfed.store.runs import Mode, choose_run
from openfed.wire.messages import RunState
from openfed.workspace import Workspace

STOPPED = 130


def start_aggregator(workspace: Workspace, mode: Mode, observe: Observe) -> int:
    """Serve the plan's run in this process until it ends; returns the exit code."""
    lock = load_lock(workspace.root)
    say = partial(note, observe)
    trial_certificates(workspace, lock, observe)
    chosen = choose_run(workspace.root, lock.digest, mode)
    say(chosen.reason)
    if chosen.action == "complete":
        say("nothing to do: --new begins another run")
        return 0
    with recorder(workspace.logs, resumed=chosen.action == "resume") as record:
        emit = _emitter(record, observe)
        try:
            state = run_until_stopped(
                lambda stop: run_aggregator(workspace.root, chosen.run, lock.listen, emit, stop)
            )
        except Interrupted as stopped:
            say(stopped.message)
            return STOPPED
    return 0 if state is RunState.COMPLETED else 1


class _emitter:
    """Passes events on to observers, one at a time: they come from several threads."""

    def __init__(self, *observers: Observe) -> None:
        self._observers, self._one = observers, threading.Lock()

    def __call__(self, kind: str, fields: Mapping[str, Any]) -> None:
        with self._one:
            for observe in self._observers:
                observe({"event": kind, "at": time.time(), **fields})


def start_collaborator(workspace: Workspace, name: str, observe: Observe) -> int:
    """Keep a collaborator's agent and task process going until the run ends.

    Raises: UsageError: U16 not in the plan, U17 no port to dial. OpenFedError U21: the agent gave
    up, with its reason.
    """
    lock = load_lock(workspace.root)
    if name not in lock.plan.collaborators:
        known = ", ".join(lock.plan.collaborators)
        raise UsageError("U16", f"{name!r} is no collaborator of the plan; it has: {known}")
    if lock.listen.endswith(":0"):
        raise UsageError("U17", f"expected a port in aggregator.listen, got {lock.listen}")
    local = read_local(workspace.local, lock.plan.collaborators)
    trial_certificates(workspace, lock, observe)
    address = dialled(lock.advertise[0], lock.listen)
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
                raise gone(news, workspace.logs)
            return 0
    raise AssertionError("news never end")


def trial_certificates(workspace: Workspace, lock: Lock, observe: Observe) -> None:
    """Issue what is missing where the authority is in this workspace, or there is none yet.

    Other nodes of the workspace may do the same at this moment.
    """
    cert = workspace.cert
    if (cert / "authority").exists() or not (cert / "authority.pem").exists():
        for line in wrote(workspace, certificates(workspace, lock)):
            note(observe, line)
