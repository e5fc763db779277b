"""`fx plan initialize`: the initial model and plan.lock, from plan.yaml and the code it names.

The model is made by a task process without data: no other process imports the user's code.
"""

import json
import queue
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from openfed.codec.advice import idle_stages
from openfed.errors import OpenFedError, TaskError, UsageError
from openfed.launch.processes import GRACE_S, Exit, Kind, Launcher, Line, NodeSpec
from openfed.plan.load import refusal
from openfed.plan.lock import Lock, code_files, make_lock, read_lock, write_lock
from openfed.plan.schema import Plan, canonical
from openfed.tensors.check import check_entries, check_finite
from openfed.tensors.frame import digest, open_frame
from openfed.tensors.model_file import read_model, write_model
from openfed.tensors.record import Record, Signature, signature_of, spec_of
from openfed.typing import Json, Tensors
from openfed.workspace import Workspace

Say = Callable[[str], None]
MODEL_LIMIT = 1 << 40
OUTPUT_LIMIT = 16 << 20
"""Most bytes that one task may print."""
THREADS = 1
"""Of the process that makes the initial model."""
NOBODY = "site"
"""What it is told to be where the plan names no site."""


def initialize(
    workspace: Workspace, plan: Plan, launcher: Launcher, say: Say
) -> tuple[Lock, tuple[Path, ...], float]:
    """The lock of `plan`; the files written, none when they were up to date; seconds of imports.

    Raises: TaskError: the user's code failed.
    """
    kept = current_lock(workspace, plan)
    if kept is not None and kept.plan == plan:
        return kept, (), 0.0
    if kept is not None:  # other addresses: they are not in the digest
        lock = replace(kept, plan=plan)
        write_lock(workspace.lock, lock)
        return lock, (workspace.lock,), 0.0
    files = code_files(workspace.root)
    say("making the initial model: your code is imported in a task process, without data")
    model, signature, took = _initial_model(workspace, plan, launcher)
    check_pipeline(workspace, plan, signature)
    if plan.init is not None:
        model = _warm(workspace.root / plan.init, model)
    lock = make_lock(plan, files, digest(Record(model)), signature)
    write_model(workspace.model(plan.name, "init"), model)
    write_lock(workspace.lock, lock)
    return lock, (workspace.model(plan.name, "init"), workspace.lock), took


def check_pipeline(
    workspace: Workspace, plan: Plan, signature: Signature | None, overrides: Sequence[str] = ()
) -> None:
    """Raises: PlanError: P23 a stage would save nothing, K11 an `except` that matches nothing."""
    if wrong := tuple(idle_stages(plan.compression_pipeline, signature)):
        raise refusal(workspace.plan, overrides, wrong)


def known_signature(workspace: Workspace, plan: Plan) -> Signature | None:
    """That of plan.lock, if the plan and the code still make the model that it is of."""
    try:
        lock = read_lock(workspace.lock)
        same = dict(lock.files) == code_files(workspace.root)
    except OpenFedError:
        return None
    makers = ("task_runner", "scope", "strategy", "flow")
    same = same and all(getattr(lock.plan, key) == getattr(plan, key) for key in makers)
    return lock.signature if same else None


def task_config(
    root: Path, plan: Plan, collaborator: str, source: Json, device: str, threads: int
) -> dict[str, Any]:
    """`task.json`: all that a task process is told of the plan, and its site's data."""
    kept = {"seed", "rounds", "metrics", "scope", "data_contract"}
    told = plan.model_dump(mode="json", include=kept)
    return {
        **told,
        "workspace": str(root),
        "collaborator": collaborator,
        "source": source,
        "runner": _runner(plan),
        "data_loader": plan.data_loader.model_dump(mode="json"),
        "strategy": plan.strategy.model_dump(mode="json"),
        "device": device,
        "threads": threads,
        "output_limit": OUTPUT_LIMIT,
    }


def _runner(plan: Plan) -> dict[str, Any]:
    """The task runner; one on sums is told the flow that it computes for."""
    told = plan.task_runner.model_dump(mode="json")
    return {**told, "settings": {"flow": plan.flow.model_dump(mode="json")}} if plan.flow else told


def current_lock(workspace: Workspace, plan: Plan) -> Lock | None:
    """plan.lock, if it is of this plan, this code and the initial model that lies beside it."""
    init = workspace.model(plan.name, "init")
    if not workspace.lock.exists() or not init.exists():
        return None
    try:
        lock = read_lock(workspace.lock)
        same = canonical(lock.plan) == canonical(plan)
        same = same and dict(lock.files) == code_files(workspace.root)
        same = same and digest(Record(read_model(init))) == lock.model_digest
    except OpenFedError:
        return None  # damaged, or of another version: it is made anew
    return lock if same else None


def _initial_model(
    workspace: Workspace, plan: Plan, launcher: Launcher
) -> tuple[Tensors, Signature, float]:
    with tempfile.TemporaryDirectory(prefix="openfed-initial-") as folder:
        out = Path(folder)
        config = task_config(workspace.root, plan, (*plan.named, NOBODY)[0], None, "cpu", THREADS)
        (out / "task.json").write_text(json.dumps(config))
        _make(out, launcher)
        facts = json.loads((out / "initial.json").read_text())
        with open_frame(out / "model.frame", limit=MODEL_LIMIT) as frame:
            tensors = frame.record().tensors
    signature = tuple(spec_of(entry) for entry in facts["signature"])
    check_entries(signature_of(tensors), signature)
    for name, value in tensors.items():
        check_finite(name, value)
    return tensors, signature, float(facts["import_seconds"]) + float(facts["build_seconds"])


def _make(out: Path, launcher: Launcher) -> None:
    """Run the task process that writes `out/model.frame` and `out/initial.json`."""
    arguments = ("--initial", str(out), "--config", str(out / "task.json"))
    log = out / "initialize.log"
    module = "openfed.tasks.child"
    spec = NodeSpec("initial model", Kind.TASK, module, arguments, out, log)
    ended: queue.SimpleQueue[Line | Exit] = queue.SimpleQueue()
    node = launcher.start(spec, ended.put)
    try:
        happened = ended.get()
    finally:
        node.stop()
        node.wait(GRACE_S)
    assert isinstance(happened, Exit)
    if happened.code:
        raise _failure(happened.code, log.read_text(errors="replace"))


def _failure(code: int, log: str) -> TaskError:
    """The error that the process told in its last line, or what it said when it told none."""
    lines = log.strip().splitlines()
    try:
        told = json.loads(lines[-1])
        return TaskError(told["code"], told["message"], traceback=told["traceback"])
    except (IndexError, ValueError, KeyError, TypeError, AssertionError):
        last = "\n".join(lines[-20:])
        message = f"the process that makes the initial model ended with {code}"
        return TaskError("U12", message, traceback=last)


def _warm(path: Path, model: Tensors) -> Tensors:
    """The model of a file, which must have exactly the entries of the plan's own."""
    given = read_model(path)
    expected, found = set(signature_of(model)), set(signature_of(given))
    wrong = sorted({spec.name for spec in expected ^ found})
    if wrong:
        raise UsageError("U13", f"{path} is not a model of this plan: it differs in {wrong[:5]}")
    for name, value in given.items():
        check_finite(name, value)
    return given
