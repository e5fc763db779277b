"""`fx run`: a whole federation on this machine, each node a process of its own."""

import json
import os
import re
import shlex
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path

from openfed.errors import CODES, OpenFedError, TaskError, UsageError
from openfed.files import lock_file, write_whole
from openfed.launch.initial import current_lock, initialize, task_config
from openfed.launch.places import Place, Placed, Reached, on_this_machine
from openfed.launch.processes import Exit, Kind, Line, NodeSpec, Supervisor
from openfed.launch.result import Heard, Result
from openfed.launch.status import as_told, latest
from openfed.observe.files import recorder
from openfed.observe.view import Event, Observe
from openfed.pki.files import ensure_federation
from openfed.plan.load import load_plan
from openfed.plan.local import Local, read_local
from openfed.plan.lock import Lock
from openfed.plan.schema import Plan
from openfed.store.runs import Mode, choose_run, new_run_id, run_folder
from openfed.workspace import Workspace, purpose

NODE, TASK = "openfed.launch.node", "openfed.tasks.child"
AGGREGATOR = "aggregator"
LAST_WORDS = 20
"""Lines of a node's log that an error quotes."""


def run_federation(
    workspace: Workspace,
    overrides: Sequence[str],
    mode: Mode,
    observe: Observe,
    placed: Placed = on_this_machine,
) -> Result:
    """Run the plan, from certificates to the trained model; `observe` is told all that happens.

    A run that its plan or its sites fail still gives a `Result`, with status "failed".
    Raises: OpenFedError: there was no run, or a node died and left it to be resumed.
    """
    begun = time.monotonic()
    plan = load_plan(workspace.plan, overrides)
    local = read_local(workspace.local, plan.collaborators)
    _check_enough(workspace, plan, local)
    if mode == "resume":
        _check_resumable(workspace, plan)
    with ExitStack() as stack:
        stack.enter_context(only_one(workspace))
        say = partial(note, observe)
        place = stack.enter_context(placed(workspace, local))
        lock, written, initial = initialize(workspace, plan, place.launcher, say)
        for line in wrote(
            workspace, (*written, *certificates(workspace, lock, tuple(local.sites)))
        ):
            say(line)
        run, resumed, reason = _choose(workspace, lock, mode)
        say(reason)
        if not resumed:
            for log in workspace.logs.glob("*.log"):
                log.unlink()  # of the run before: logs/ is about the latest
        with recorder(workspace.logs, resumed=resumed) as record:
            again = resuming(overrides)
            record({"event": "launched", "at": time.time(), "command": again})
            launch = _Launch(workspace, lock, run, local, (record, observe), again, place)
            code = launch.run()
    spent = launch.heard.seconds(time.monotonic() - begun, initial)
    return _result(workspace, launch.heard, spent, code)


@contextmanager
def only_one(workspace: Workspace) -> Iterator[None]:
    """Hold the workspace; raises `UsageError` U20 while another `fx run` does."""
    workspace.runs.mkdir(mode=0o700, exist_ok=True)
    try:
        held = lock_file(workspace.runs / "lock", wait=False)
    except BlockingIOError:
        raise UsageError("U20", f"another fx runs in {workspace.root}: stop it first") from None
    try:
        yield
    finally:
        os.close(held)


def certificates(workspace: Workspace, lock: Lock, names: tuple[str, ...]) -> list[Path]:
    """Issue what is missing, for a trial: the authority, the aggregator and the collaborators of
    these names live in this workspace."""
    hosts = tuple(lock.advertise)
    return ensure_federation(workspace.cert, lock.plan.federation, hosts, names, time.time())


def _check_enough(workspace: Workspace, plan: Plan, local: Local) -> None:
    """Raises: UsageError U41: the plan waits for more sites than are here."""
    if len(local.sites) < plan.fewest:
        found, least = len(local.sites), plan.fewest
        message = f"expected at least {least} sites, as the plan says, got {found}: add some"
        raise UsageError("U41", f"{workspace.local}: {message}")


def resuming(overrides: Sequence[str]) -> str:
    """The command that goes on with a run of these overrides."""
    return shlex.join(["fx", "run", *(word for each in overrides for word in ("-s", each))])


def _check_resumable(workspace: Workspace, plan: Plan) -> None:
    """Raises, before anything is written: UsageError U40, no run of just this plan can go on."""
    lock = current_lock(workspace, plan)
    if lock is None:
        found = "it has another plan, code or initial model" if workspace.lock.exists() else "none"
        raise UsageError("U40", f"expected the plan.lock of the run to resume, got {found}")
    choose_run(workspace.root, lock.digest, "resume")


def _choose(workspace: Workspace, lock: Lock, mode: Mode) -> tuple[str, bool, str]:
    """The run's id, whether it was begun before, and a sentence that says which and why."""
    chosen = choose_run(workspace.root, lock.digest, mode)
    if chosen.action == "complete":
        run = new_run_id()
        return run, False, f"{chosen.reason}: training again, as run {run}"
    return chosen.run, chosen.action == "resume", chosen.reason


class _Launch:
    """The nodes of one run, from their start to their end."""

    def __init__(
        self,
        workspace: Workspace,
        lock: Lock,
        run: str,
        local: Local,
        observers: tuple[Observe, ...],
        again: str,
        place: Place,
    ) -> None:
        self.heard = Heard()
        self._workspace, self._lock, self._run_id, self._local = workspace, lock, run, local
        self._observers, self._again = observers, again
        self._place, self._nodes = place, Supervisor(place.launcher)

    def run(self) -> int:
        """Start everything, relay until the run has ended, stop everything; the exit code."""
        try:
            self._start()
            return self._relay()
        except KeyboardInterrupt:
            self._say(f"stopped run {self._run_id}: `{self._again}` resumes it")
            raise
        finally:
            self._nodes.stop()
            shutil.rmtree(self._exchange, ignore_errors=True)  # sockets, and copies of the model

    @property
    def _exchange(self) -> Path:
        return run_folder(self._workspace.root, self._run_id) / "exchange"

    def _start(self) -> None:
        run = run_folder(self._workspace.root, self._run_id)
        reached = self._place.open(self._lock, run)
        self._nodes.start(aggregator_spec(self._workspace, self._run_id, reached.listen))
        for name in self._local.sites:
            exchange = self._exchange / name
            for spec in site_specs(
                self._workspace,
                self._lock,
                self._local,
                name,
                reached,
                exchange,
                self._place.launcher.isolation,
            ):
                self._nodes.start(spec)

    def _relay(self) -> int:
        """Tell observers what the aggregator says, until it has said how the run ended."""
        for news in self._nodes.news():
            if isinstance(news, Line):
                self._hear(news)
            elif self._ended:
                if news.name == AGGREGATOR:
                    return news.code
            elif self._nodes.returns(news.name):
                text = f"{news.name} ended ({cause(news.code)}) and is started again"
                record, _ = self._observers
                note(record, text) if news.code == 0 else self._say(text)
            else:
                raise gone(news, self._nodes.log(news.name))
        raise AssertionError("news never end")

    def _hear(self, line: Line) -> None:
        if line.name == AGGREGATOR:  # agents speak to their logs
            self._tell(event_of(line))
        if self._ended:
            self._nodes.finish()

    @property
    def _ended(self) -> bool:
        return self.heard.ended is not None

    def _tell(self, event: Event) -> None:
        self.heard.hear(event)
        for observe in self._observers:
            observe(event)

    def _say(self, text: str) -> None:
        for observe in self._observers:
            note(observe, text)


# -- what is started ----------------------------------------------------------------------------


def aggregator_spec(workspace: Workspace, run: str, listen: str) -> NodeSpec:
    arguments = ("aggregator", "--workspace", str(workspace.root), "--run", run, "--listen", listen)
    return _spec(workspace, AGGREGATOR, Kind.AGGREGATOR, arguments, workspace.log(AGGREGATOR))


def site_specs(
    workspace: Workspace,
    lock: Lock,
    local: Local,
    name: str,
    reached: Reached,
    exchange: Path,
    isolation: str,
) -> tuple[NodeSpec, NodeSpec]:
    """A collaborator's agent and task process: siblings that meet in the exchange folder.

    `isolation`: of the task process, for people; the agent tells it.
    """
    source, device, threads = local.sites[name], local.device, local.threads
    config = task_config(workspace.root, lock.plan, name, source, device, threads)
    exchange.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(exchange / "task.json", json.dumps(config).encode(), 0o600)  # not through a link
    where, log = ("--exchange", str(exchange)), workspace.log(name)
    agent = ("agent", "--workspace", str(workspace.root), "--name", name, "--isolation", isolation)
    named = ("--server-name", reached.server_name) if reached.server_name else ()
    dialling = ("--address", reached.address, *named)
    return (
        _spec(workspace, name, Kind.AGENT, (*agent, *dialling, *where), log),
        _spec(workspace, f"{name}.task", Kind.TASK, where, log, threads),
    )


def _spec(
    workspace: Workspace,
    name: str,
    kind: Kind,
    arguments: tuple[str, ...],
    log: Path,
    threads: int = 1,
) -> NodeSpec:
    module = TASK if kind == Kind.TASK else NODE
    return NodeSpec(name, kind, module, arguments, workspace.runs / "home" / name, log, threads)


# -- what is told -------------------------------------------------------------------------------


def note(observe: Observe, text: str) -> None:
    observe({"event": "note", "at": time.time(), "text": text})


def wrote(workspace: Workspace, paths: Iterable[Path]) -> Iterator[str]:
    """A line for each folder in which files were written, and who gets them."""
    names = [path.relative_to(workspace.root) for path in paths]
    for folder, inside in groupby(names, lambda name: name.parent):
        files = list(inside)
        listed = ", ".join(name.name for name in files)
        yield f"wrote {folder}/: {listed} ({purpose(files[-1])})"


def event_of(line: Line) -> Event:
    """The event in a line; what a library printed there is passed on as a note."""
    try:
        event = json.loads(line.text)
    except ValueError:
        event = None
    if isinstance(event, dict):
        return event
    return {"event": "note", "at": time.time(), "text": line.text.decode(errors="replace").strip()}


def cause(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


CODED = re.compile(r"[0-9:]{8} ([A-Z][0-9]{2})  (.+)")
"""How a node's log says why it ended."""


def gone(node: Exit, log: Path, last: str = "") -> OpenFedError:
    """The error for a node that ended by itself and will not be back: its own, if it told one.

    `last`: its last line, where that is known: others write to a site's log as well.
    """
    lines = log.read_text(errors="replace").splitlines()[-LAST_WORDS:] if log.exists() else []
    told = CODED.fullmatch(last or (lines[-1] if lines else ""))
    if told and told[1] in CODES:
        error = OpenFedError(told[1], f"{node.name}: {told[2]} (its log: {log})")
    else:
        said = "".join(f"\n    {line}" for line in lines)
        how = f"{node.name} ended ({cause(node.code)}) before the run did"
        error = OpenFedError("U21", f"{how}; {log} ends:{said}")
    error.exit_code = node.code if 0 < node.code < 128 else 1
    return error


def _result(workspace: Workspace, heard: Heard, spent: Mapping[str, float], code: int) -> Result:
    """The object of `--json`. A run that fails after user code did ends as user code's failure."""
    assert heard.ended is not None
    told = as_told(heard.ended, latest(workspace))
    if told["status"] == "completed":
        code = 0
    elif heard.task_failed:
        code = TaskError.exit_code
    return Result(workspace.root, {**told, "seconds": dict(spent)}, code)
