"""`fx status`: the latest run of a workspace, read from its files."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openfed.files import lock_file
from openfed.observe.files import EVENTS, read
from openfed.observe.text import clean, has_news, one_line, plural, row_line
from openfed.observe.view import View, fold_all
from openfed.store.runs import run_folder
from openfed.workspace import Workspace

ROWS = 10
"""How many of the latest models are shown."""


def latest(workspace: Workspace) -> View:
    """The latest run as its events tell it; empty when there was none."""
    return fold_all(read(workspace.logs / EVENTS))


def status(workspace: Workspace, view: View) -> dict[str, Any]:
    """`status` is none, running, interrupted, or how the run ended; then with all of `--json`."""
    if view.ended is not None:
        return {key: value for key, value in view.ended.items() if key not in ("event", "at")}
    state = "none" if not view.run else "interrupted"
    if view.run and _held(run_folder(workspace.root, view.run) / "lock"):
        state = "running"
    return {
        "status": state,
        "rounds": max((k for k, row in view.rows.items() if row.seconds), default=0),
        "reason": None,
        "run": view.run or None,
        "plan_digest": view.plan_digest or None,
        "best": dict(view.best) if view.best else None,
        "collaborators": {name: site.shown for name, site in view.sites.items()},
    }


def status_lines(found: Mapping[str, Any], view: View) -> Iterator[str]:
    """The same for people."""
    if found["status"] == "none":
        yield "no run yet: fx run"
        return
    yield f"{view.name}: run {view.run}, plan {view.plan_digest[:16]}"
    reason = f": {clean(found['reason'])}" if found["reason"] else ""
    yield f"{found['status']} after {found['rounds']} of {plural(view.rounds, 'round')}{reason}"
    rows = [row for _, row in sorted(view.rows.items()) if has_news(row)]
    yield from (row_line(view, row) for row in rows[-ROWS:])
    if view.ended is None:
        yield from (f"{one_line(name, 40)}: {one_line(s.shown)}" for name, s in view.sites.items())
    if found["status"] == "interrupted":
        yield f"`{clean(view.command) or 'fx run'}` resumes it"


def _held(path: Path) -> bool:
    """Whether a process holds the lock file."""
    if not path.exists():
        return False
    try:
        os.close(lock_file(path, wait=False))
    except BlockingIOError:
        return True
    return False
