"""`events.jsonl`, `metrics.jsonl`, `transfers.jsonl`: every event, every score and every finished
transfer, one JSON line each."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from openfed.observe.view import Event, Observe, moved_by

EVENTS, METRICS, TRANSFERS = "events.jsonl", "metrics.jsonl", "transfers.jsonl"

KEYS = {
    METRICS: ("round", "model", "collaborator", "task", "metric"),
    TRANSFERS: ("round", "task", "ask", "collaborator", "direction", "payload"),
}
"""What names one line: a resumed run that tells it again writes no second one."""


@contextmanager
def recorder(logs: Path, *, resumed: bool) -> Iterator[Observe]:
    """Writes events below `logs`; continues the files of a resumed run, else begins new ones."""
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(_open(logs / name, resumed=resumed))
            for name in (EVENTS, *KEYS)
        }
        known = {_key(name, line) for name in KEYS for line in read(logs / name)}

        def record(event: Event) -> None:
            _write(files[EVENTS], event)
            for name, line in _lines(event):
                if _key(name, line) not in known:
                    known.add(_key(name, line))
                    _write(files[name], line)

        yield record


def _lines(event: Event) -> Iterator[tuple[str, Event]]:
    """What an event adds to other files than events.jsonl."""
    if event.get("event") == "metric":
        yield METRICS, {key: event[key] for key in (*KEYS[METRICS], "value", "n")}
    if event.get("event") == "transfer":
        moved = moved_by(event)
        derived = {"ratio": round(moved.ratio, 3), "mb_per_s": round(moved.rate / 1e6, 3)}
        known = {"payload": "", "ask": "", **event}
        kept = {key: known[key] for key in (*KEYS[TRANSFERS], "bytes", "raw", "seconds")}
        yield TRANSFERS, {**kept, **derived}


def read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON-lines file; none when it is not there."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn
    return [json.loads(line) for line in lines if line.strip()]


def _open(path: Path, *, resumed: bool) -> BinaryIO:
    file = path.open("r+b" if resumed and path.exists() else "w+b")
    whole = file.read().rfind(b"\n") + 1
    file.seek(whole)
    file.truncate()  # a line that a crash tore
    return file


def _write(file: BinaryIO, value: Event) -> None:
    file.write(json.dumps(value, allow_nan=False, separators=(",", ":")).encode() + b"\n")
    file.flush()


def _key(name: str, line: Event) -> tuple[Any, ...]:
    return name, *(line[key] for key in KEYS[name])
