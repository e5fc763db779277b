"""`events.jsonl` and `metrics.jsonl`: every event, and every score, one JSON line each."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from openfed.observe.view import Event, Observe

EVENTS, METRICS = "events.jsonl", "metrics.jsonl"
KEY = ("round", "model", "collaborator", "task", "metric")
"""What names one line of metrics.jsonl: a resumed run that scores again writes no second line."""


@contextmanager
def recorder(logs: Path, *, resumed: bool) -> Iterator[Observe]:
    """Writes events below `logs`; continues the files of a resumed run, else begins new ones."""
    logs.mkdir(parents=True, exist_ok=True)
    known = {_key(line) for line in read(logs / METRICS)} if resumed else set()
    with (
        _open(logs / EVENTS, resumed=resumed) as events,
        _open(logs / METRICS, resumed=resumed) as metrics,
    ):

        def record(event: Event) -> None:
            _write(events, event)
            if event.get("event") == "metric" and _key(event) not in known:
                known.add(_key(event))
                _write(metrics, {key: event[key] for key in (*KEY, "value", "n")})

        yield record


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


def _key(event: Event) -> tuple[Any, ...]:
    return tuple(event[key] for key in KEY)
