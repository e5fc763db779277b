"""What lies on disk, held against a run's ledger: the journal's tables, what sites have kept."""

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.errors import UsageError
from openfed.store.ledger import AskTold, Entry, Fault, Story, Verify, head_message
from openfed.store.witness import Seen, read_seen

MOST_FILE = 1 << 30
"""Bytes of a file that is read whole."""


@dataclass(frozen=True)
class Tables:
    """What the journal says beside its ledger."""

    asks: Mapping[str, tuple[int, int, str, bool | None]]  # id -> round, ordinal, task, met
    replies: Mapping[tuple[str, str], tuple[str, int, str]]  # ask, name -> digest, bytes, code
    turns: Mapping[int, str]  # round -> SHA-256 of the state
    status: str


def read_journal(path: Path) -> tuple[list[bytes], Tables]:
    """The ledger's lines and the tables, of one moment; a run may go on meanwhile.

    Raises: UsageError J08: it is no journal.
    """
    try:
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            db.execute("begin")
            lines = [
                str(line).encode()
                for (line,) in db.execute("select entry from ledger order by number")
            ]
            return lines, _tables(db)
        finally:
            db.close()
    except sqlite3.Error as error:
        raise UsageError("J08", f"{path}: expected a journal with a ledger: {error}") from error


def _tables(db: sqlite3.Connection) -> Tables:
    asks = {
        str(id): (round, ordinal, str(task), None if met is None else bool(met))
        for id, round, ordinal, task, met in db.execute(
            "select id, round, ordinal, task, met from asks"
        )
    }
    replies = {
        (str(ask), str(name)): (str(digest), size, str(code))
        for ask, name, digest, size, code in db.execute(
            "select ask, collaborator, digest, size, code from replies"
        )
    }
    turns = {
        round: hashlib.sha256(str(state).encode()).hexdigest()
        for round, state in db.execute("select round, state from turns")
    }
    status = db.execute("select value from facts where name = 'status'").fetchone()
    return Tables(asks, replies, turns, str(status[0]) if status else "")


def read_lines(path: Path) -> list[bytes]:
    """The lines of an exported ledger, or of what a site kept. Raises: UsageError J08."""
    if not path.is_file() or path.stat().st_size > MOST_FILE:
        raise UsageError("J08", f"{path}: expected a file of JSON lines, at most {MOST_FILE} bytes")
    data = path.read_bytes()
    if not data:
        raise UsageError("J08", f"{path}: it is empty")
    *lines, rest = data.split(b"\n")
    return [*lines, rest] if rest else lines


# -- tables against the ledger ---------------------------------------------------------------------


def table_faults(story: Story, tables: Tables) -> Iterator[Fault]:
    """J06 where a table says something else than the ledger."""
    old = story.adopted
    mine = story.asks.values()
    before = {id for id, (round, *_) in tables.asks.items() if old is not None and round <= old + 1}
    elsewhere = before - story.asks.keys()  # asks from before the ledger
    told_asks = {ask.id: (ask.round, ask.ordinal, ask.task, ask.met) for ask in mine}
    asks = {id: row for id, row in tables.asks.items() if id not in elsewhere}
    yield from _differences("ask", told_asks, asks)
    told_replies = {(ask.id, name): reply for ask in mine for name, reply in ask.replies.items()}
    replies = {key: row for key, row in tables.replies.items() if key[0] not in elsewhere}
    yield from _differences("reply", told_replies, replies)
    told_turns = {round: turn.state for round, turn in story.turns.items()}
    turns = {k: state for k, state in tables.turns.items() if old is None or k > old}
    yield from _differences("turn", told_turns, turns)
    if tables.status != (story.ended or "running"):
        message = f"the journal says {tables.status}, its ledger {story.ended or 'running'}"
        yield Fault("J06", 0, "", message)


def _differences(
    what: str, told: Mapping[Any, object], found: Mapping[Any, object]
) -> Iterator[Fault]:
    for key in sorted(told.keys() | found.keys()):
        if told.get(key) != found.get(key):
            name = " of ".join(reversed(key)) if isinstance(key, tuple) else key
            expected, got = told.get(key, "nothing"), found.get(key, "nothing")
            message = f"{what} {name}: the ledger says {expected}, the journal {got}"
            yield Fault("J06", 0, "", message)


# -- what a site has kept, against the ledger ------------------------------------------------------


@dataclass(frozen=True)
class Inclusion:
    """An update that its site has a receipt of. `accepted`: the ask was closed with it, or it came
    late and counted in this round, the next."""

    round: int
    task: str
    ask: str
    digest: str
    accepted: bool


@dataclass(frozen=True)
class Kept:
    """What a site's file came to."""

    path: str
    collaborator: str
    heads: int
    included: tuple[Inclusion, ...]
    faults: tuple[Fault, ...]


def check_kept(
    path: str, lines: Iterable[bytes], entries: Mapping[int, Entry], story: Story,
    verify: Verify | None,
) -> Kept:  # fmt: skip
    """Whether the ledger is the one that a site was told of: J05 if not. J01: a line was changed.
    J03: it is not the aggregator's word. J08: the file is of another run."""
    faults, seen = list[Fault](), list[Seen]()
    known = {entry.line(): entry for entry in entries.values()}
    for number, line in enumerate(lines, 1):
        try:
            seen.append(read_seen(line, known))
        except ValueError as error:
            faults.append(Fault("J01", 0, "", f"{path}:{number}: {error}"))
    own = [each for each in seen if each.run == story.run]
    if not own and not faults:
        faults.append(Fault("J08", 0, "", f"{path}: nothing in it is of run {story.run}"))
    found = (_unlike(each, entries, story, verify) for each in own)
    faults += [fault for fault in found if fault]
    receipts = [each.receipt for each in own if each.receipt]
    included = [_inclusion(entry, story) for entry in receipts if _same(entry, entries)]
    names = ", ".join(sorted({each.collaborator for each in own}))
    heads = len(own) - len(receipts)
    return Kept(path, names, heads, tuple(filter(None, included)), tuple(faults))


def _same(entry: Entry, entries: Mapping[int, Entry]) -> bool:
    return entry.number in entries and entries[entry.number].hash == entry.hash


def _unlike(
    seen: Seen, entries: Mapping[int, Entry], story: Story, verify: Verify | None
) -> Fault | None:
    head, here = seen.head, entries.get(seen.head.number)
    if here is not None and here.hash == head.hash:
        return None
    kind = seen.receipt.kind if seen.receipt else here.kind if here else ""
    message = head_message(story.run, story.plan, head.number, head.hash)
    if verify and not verify(message, head.signature):
        text = f"what {seen.collaborator} has kept of it is not signed by the aggregator"
        return Fault("J03", head.number, kind, text)
    if here is not None:
        there = f"the ledger has {here.hash[:16]} there"
    elif head.number > max(entries, default=0):
        there = f"the ledger ends with entry {max(entries, default=0)}"
    else:
        there = "the ledger has none that is whole there"
    text = f"{seen.collaborator} was told of one with hash {head.hash[:16]}, {there}"
    return Fault("J05", head.number, kind, text)


def _inclusion(entry: Entry, story: Story) -> Inclusion | None:
    ask: AskTold | None = story.asks.get(str(entry.content.get("ask")))
    if ask is None:
        return None
    name, digest = entry.content.get("collaborator"), str(entry.content.get("digest"))
    late = (name, digest) in story.late
    accepted = late or (ask.met is True and name in ask.counted)
    return Inclusion(ask.round + late, ask.task, ask.id, digest, accepted)
