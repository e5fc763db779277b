"""A view and its events as plain lines: what `fx run | cat`, CI logs and notebooks show.

Names, messages and tracebacks come from other sites: everything printed goes through `clean`.
"""

from collections.abc import Collection, Iterator, Mapping

from openfed.observe.view import Event, Moved, Row, View, finished, unscored

MESSAGE_LIMIT = 2_000
TRACEBACK_LIMIT = 20_000


def clean(text: object, limit: int = MESSAGE_LIMIT) -> str:
    r"""`text` without anything a terminal would obey: control, format and bidi characters.

    Newlines and tabs stay (callers that need one line use `one_line`).

    >>> clean("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    text = str(text)
    kept = text if len(text) <= limit else text[:limit] + f" ... ({len(text)} characters)"
    return "".join(c if c in "\n\t" or c.isprintable() else _escaped(c) for c in kept)


def one_line(text: object, limit: int = MESSAGE_LIMIT) -> str:
    return " ".join(clean(text, limit).split())


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def number(value: float) -> str:
    """Four digits after the point where that says something, an exponent elsewhere."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.3e}"


def size(count: float) -> str:
    """Bytes in decimal units, as networks are sold: `size(1_234_567) == "1.2 MB"`."""
    units = ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if count < 999.5 or unit == units[-1]:
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def short(value: float) -> str:
    """Two digits or more: `0.25`, `8.0`, `32`, `1234`."""
    return f"{value:.2f}" if value < 0.995 else f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def times(moved: Moved) -> str:
    """`8.0x`: how many times smaller it was than raw; empty where that is no news."""
    return "" if (said := short(moved.ratio)) == "1.0" else f"{said}x"


def transferred(moved: Moved, *, raw: bool = False) -> str:
    """`1.2 MB (8.0x, 45 MB/s)`; on request with what it was before coding."""
    was = f"raw {size(moved.raw)}" if raw and times(moved) else ""
    rate = f"{size(moved.rate)}/s" if moved.rate else ""
    about = ", ".join(filter(None, (was, times(moved), rate)))
    return f"{size(moved.bytes)} ({about})" if about else size(moved.bytes)


def both_ways(up: Moved, down: Moved, *, raw: bool = False) -> str:
    return f"up {transferred(up, raw=raw)}, down {transferred(down, raw=raw)}"


def plural(count: int, noun: str) -> str:
    """`plural(1, "round") == "1 round"`, `plural(2, "round") == "2 rounds"`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def failed_handshakes(counts: Mapping[str, int]) -> str:
    """`failed handshakes: 3 (unknown authority 2, not TLS 1)`"""
    each = ", ".join(f"{one_line(cause, 40)} {count}" for cause, count in counts.items())
    return f"failed handshakes: {sum(counts.values())} ({each})"


def row_line(view: View, row: Row) -> str:
    """Everything about one model on one line."""
    width = len(str(view.rounds))
    label = f"round {row.model:>{width}}/{view.rounds}" if row.model else "initial model"
    parts = [label, *(f"{one_line(k, 40)} {number(v)}" for k, v in row.scores.items())]
    parts += [f"{one_line(k, 40)} {number(v)}" for k, v in sorted(row.others.items())]
    if row.n:
        each = ", ".join(f"{one_line(name, 40)} {n}" for name, n in sorted(row.n.items()))
        parts.append(f"n {sum(row.n.values())} ({each})")
    if row.missing:
        parts.append("without " + ", ".join(one_line(name, 40) for name in row.missing))
    if row.seconds:
        parts.append(f"{row.seconds:.1f} s")
    if row.moved:
        parts.append(both_ways(row.total("up"), row.total("down")))
    return "  ".join(parts)


def lines(view: View, event: Event, quiet: Collection[str] = ()) -> Iterator[str]:
    """What to print after `event`, which `view` holds already; of `quiet` kinds, only the rows."""
    for model in finished(view, event):
        if has_news(view.rows[model]):
            yield row_line(view, view.rows[model])
    kind = event.get("event", "")
    if kind == "run.ended" and unscored(view):
        yield "no site gave validation data: no scores, no best model"
    if kind in SAY and kind not in quiet:
        yield from SAY[kind](view, event)


def has_news(row: Row) -> bool:
    """Whether there is anything to show about a model."""
    return bool(row.scores or row.others or row.n or row.seconds)


def _note(view: View, event: Event) -> Iterator[str]:
    yield clean(event["text"])


def _started(view: View, event: Event) -> Iterator[str]:
    what = "run resumed" if event.get("resumed") else "run"
    rounds = plural(view.rounds, "round")
    yield f"{view.name}: {what} {view.run}, plan {view.plan_digest[:12]}, {rounds}"
    names = ", ".join(one_line(name, 40) for name in view.sites)
    least = "at least " if view.open else ""
    sites = plural(int(event.get("fewest", len(view.sites))), "collaborator")
    yield f"waiting for {least}{sites}{f': {names}' if names else ''}"


def _listening(view: View, event: Event) -> Iterator[str]:
    yield f"listening on {one_line(event['address'])}"


def _refused(view: View, event: Event) -> Iterator[str]:
    why = f"{one_line(event['code'])} {one_line(event['message'])}"
    yield f"refused {one_line(event['collaborator'], 80)}: {why}"


def _handshake(view: View, event: Event) -> Iterator[str]:
    yield failed_handshakes(view.failed_handshakes)


def _joined(view: View, event: Event) -> Iterator[str]:
    seen = sum(site.joined for site in view.sites.values())
    missing = [name for name, site in view.sites.items() if not site.joined]
    waiting = f", waiting for {', '.join(one_line(n, 40) for n in missing)}" if missing else ""
    here = f"{seen} here" if view.open else f"{seen} of {len(view.sites)}{waiting}"
    yield f"{one_line(event['collaborator'])} joined ({here})"


def _replied(view: View, event: Event) -> Iterator[str]:
    if event["ruling"] not in ("accepted", "duplicate"):
        yield f"{_where(event)}: the reply is {one_line(event['ruling'])}"


def _failed(view: View, event: Event) -> Iterator[str]:
    yield f"{_where(event)} FAILED  {one_line(event['code'])}  {clean(event['message'])}"
    yield from indented(event.get("traceback") or "")


def _closed(view: View, event: Event) -> Iterator[str]:
    if event.get("missing"):
        missing = ", ".join(one_line(name, 40) for name in event["missing"])
        yield f"round {event['round']} {one_line(event['task'])}: closed without {missing}"


def _waiting(view: View, event: Event) -> Iterator[str]:
    gone = ", ".join(one_line(name, 40) for name in event["gone"])
    found = f"{event['answers']} of {event['quorum']} answers that must be"
    yield f"round {event['round']} {one_line(event['task'])}: {found}; waits for {gone} to return"


def _resumed(view: View, event: Event) -> Iterator[str]:
    yield f"round {event['round']} {one_line(event['task'])}: goes on"


def _ended(view: View, event: Event) -> Iterator[str]:
    reason = f": {clean(event['reason'])}" if event.get("reason") else ""
    yield f"{event['status']} after {event['rounds']} of {plural(view.rounds, 'round')}{reason}"


SAY = {
    "note": _note,
    "listening": _listening,
    "run.started": _started,
    "node.refused": _refused,
    "node.joined": _joined,
    "handshake.failed": _handshake,
    "reply": _replied,
    "task.failed": _failed,
    "ask.waiting": _waiting,
    "ask.resumed": _resumed,
    "ask.closed": _closed,
    "run.ended": _ended,
}


def _where(event: Event) -> str:
    return f"round {event['round']}  {one_line(event['task'])}  {one_line(event['collaborator'])}"


def indented(traceback: str) -> Iterator[str]:
    """The lines of a traceback, set off from ours."""
    for line in clean(traceback, TRACEBACK_LIMIT).splitlines():
        yield f"    {line}"
