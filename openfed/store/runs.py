"""Which run of a workspace is the latest, and whether a start goes on with it."""

import secrets
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from openfed.errors import OpenFedError, UsageError
from openfed.files import lock_file

Mode = Literal["auto", "new", "resume"]
JOURNAL = "journal.sqlite"


@dataclass(frozen=True)
class RunInfo:
    """What a run's journal says of it. `status` is running until the run has ended."""

    id: str
    plan_digest: str
    status: str
    reason: str
    round: int


@dataclass(frozen=True)
class Decision:
    """`action` is new, resume or complete; `reason` is a sentence for the user."""

    action: Literal["new", "resume", "complete"]
    run: str
    reason: str


def new_run_id() -> str:
    """Random, and sorted by the time it was made: `20261121-235959-9f2c41`."""
    return f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"


def run_folder(workspace: Path, run: str) -> Path:
    return workspace / "runs" / run


def runs(workspace: Path) -> list[RunInfo]:
    """The runs that this workspace's aggregator has a journal of, oldest first."""
    found = sorted((workspace / "runs").glob(f"*/{JOURNAL}"))
    return [info for path in found if (info := _info(path)) is not None]


def _info(path: Path) -> RunInfo | None:
    db = sqlite3.connect(path, timeout=5)
    try:
        facts = dict(db.execute("select name, value from facts"))
        (turn,) = db.execute("select coalesce(max(round), 0) from turns").fetchone()
    except sqlite3.Error:
        return None  # killed before its first commit: it holds nothing
    finally:
        db.close()
    if "plan_digest" not in facts:
        return None
    reason = facts.get("reason", "")
    return RunInfo(path.parent.name, facts["plan_digest"], facts["status"], reason, turn)


def choose_run(workspace: Path, plan_digest: str, mode: Mode = "auto") -> Decision:
    """Whether to begin a run or to go on with the latest one.

    A run is resumed only under the plan it began with. `complete` means that the latest run of
    this plan has ended; `fx run` then begins another, `fx aggregator start` exits.

    Raises: UsageError U40: `resume`, and there is nothing to resume.
    """
    known = runs(workspace)
    last = known[-1] if known else None
    same = last is not None and last.plan_digest == plan_digest
    if last is not None and same and last.status == "running" and mode != "new":
        return _resumes(last)
    if mode == "resume":
        for older in reversed(known):
            if (older.plan_digest, older.status) == (plan_digest, "running"):
                return _resumes(older)
        raise UsageError("U40", _nothing_to_resume(last, same))
    if last is None:
        return Decision("new", new_run_id(), "first run in this workspace")
    if mode == "new":
        return Decision("new", new_run_id(), "a new run, as asked")
    if not same:
        return Decision("new", new_run_id(), f"a new run: the plan changed since run {last.id}")
    if last.status == "completed":
        return Decision("complete", last.id, f"run {last.id} of this plan is completed")
    return Decision("new", new_run_id(), f"a new run: run {last.id} {last.status}: {last.reason}")


def _resumes(run: RunInfo) -> Decision:
    return Decision("resume", run.id, f"resumes run {run.id} after round {run.round}")


def _nothing_to_resume(last: RunInfo | None, same: bool) -> str:
    if last is None:
        return "expected an interrupted run to resume, got a workspace without runs"
    if not same:
        return f"expected an interrupted run of this plan, got run {last.id} of another plan"
    return f"expected an interrupted run to resume, got run {last.id}, which {last.status}"


def hold(folder: Path) -> int:
    """Take a node's folder of a run for this process, until the returned descriptor is closed.

    Raises: OpenFedError S11: another process has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        return lock_file(folder / "lock", wait=False)
    except BlockingIOError:
        raise OpenFedError("S11", f"another process works in {folder}") from None
