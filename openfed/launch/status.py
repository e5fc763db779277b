"""`fx status`: the latest run of a workspace, read from its files."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openfed.files import lock_file
from openfed.observe.files import EVENTS, read
from openfed.observe.text import (
    both_ways,
    clean,
    failed_handshakes,
    has_news,
    one_line,
    plural,
    row_line,
)
from openfed.observe.view import Event, Moved, Site, View, fold_all
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
        return as_told(view.ended, view)
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
        "isolation": isolation(view),
        **transferred(view),
        "failed_handshakes": view.failed_handshakes,
    }


def isolation(view: View) -> dict[str, str]:
    """What holds the task process of each collaborator, as it told."""
    return {name: site.isolation for name, site in view.sites.items() if site.isolation}


def as_told(ended: Event, view: View) -> dict[str, Any]:
    """The object of `--json`: what the aggregator said of the end, and what the run moved, and
    who did not get in, in all its lives."""
    told = {key: value for key, value in ended.items() if key not in ("event", "at")}
    found = {"isolation": isolation(view), **transferred(view)}
    return {**told, **found, "failed_handshakes": view.failed_handshakes}


def transferred(view: View) -> dict[str, Any]:
    """What `--json` says of bytes: of the run, and of each collaborator in it."""
    up, down = view.total("up"), view.total("down")
    total = {"up": up.bytes, "down": down.bytes, "up_raw": up.raw, "down_raw": down.raw}
    sites = view.sites.items()
    each = {name: {"up": _told(site.up), "down": _told(site.down)} for name, site in sites}
    return {"bytes": total, "transfers": each}


def _told(moved: Moved) -> dict[str, float]:
    """`seconds` adds up those of each transfer; those of several sites overlap."""
    return {"bytes": moved.bytes, "raw": moved.raw, "seconds": round(moved.seconds, 6)}


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
    about = {name: _site(view, site) for name, site in view.sites.items()}
    yield from (f"{one_line(name, 40)}: {text}" for name, text in about.items() if text)
    up, down = view.total("up"), view.total("down")
    if up.bytes or down.bytes:
        yield f"in all: {both_ways(up, down, raw=True)}"
    if view.failed_handshakes:
        yield failed_handshakes(view.failed_handshakes)
    if found["status"] == "interrupted":
        yield f"`{clean(view.command) or 'fx run'}` resumes it"


def _site(view: View, site: Site) -> str:
    """What a collaborator does, as long as the run lasts, what it has moved, and what holds its
    task process."""
    state = one_line(site.shown) if view.ended is None else ""
    moved = both_ways(site.up, site.down) if site.up.bytes or site.down.bytes else ""
    return ", ".join(filter(None, (state, moved, one_line(site.isolation, 200))))


def _held(path: Path) -> bool:
    """Whether a process holds the lock file."""
    if not path.exists():
        return False
    try:
        os.close(lock_file(path, wait=False))
    except BlockingIOError:
        return True
    return False
