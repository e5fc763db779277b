"""The journal: the one durable truth of a run, in SQLite.

A method returns only when what it wrote would survive a loss of power (WAL, synchronous=FULL).
What happened to asks and turns is also entered in the ledger, in the same transactions.
Nothing here decides: it stores what `openfed.ask` and the flow decided, in the order it happened.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.errors import CODES, OpenFedError
from openfed.failpoints import failpoint
from openfed.pki.keys import Signer
from openfed.store import ledger
from openfed.store.ledger import LATE as LATE
from openfed.store.ledger import NOTHING, following, read_entry
from openfed.typing import Json
from openfed.wire.messages import Head

_TABLES = """
create table if not exists facts (name text primary key, value text not null);
create table if not exists asks (
  id text primary key, round integer not null, ordinal integer not null, task text not null,
  elapsed_s real not null default 0, met integer, unique (round, ordinal));
create table if not exists replies (
  seq integer primary key, ask text not null references asks, collaborator text not null,
  digest text not null, size integer not null, code text not null, message text not null,
  unique (ask, collaborator));
create index if not exists replies_in_order on replies (ask);
create table if not exists turns (
  round integer primary key, state text not null, at real not null);
create table if not exists notes (
  seq integer primary key, key text not null unique, value text not null);
create table if not exists ledger (
  number integer primary key, entry text not null, name text unique);
"""


@dataclass(frozen=True)
class Reply:
    """One journaled answer to an ask; `code` is empty for an accepted one."""

    collaborator: str
    digest: str
    size: int
    code: str = ""
    message: str = ""


@dataclass(frozen=True)
class AskRow:
    """One ask as the journal knows it. `met` is None while it is open."""

    id: str
    round: int
    ordinal: int
    task: str
    elapsed_s: float
    met: bool | None
    replies: tuple[Reply, ...]  # in the order in which they were taken; all, or those after some

    @property
    def counted(self) -> tuple[Reply, ...]:
        """Those that came while the ask was open, failures too."""
        return tuple(reply for reply in self.replies if reply.code != LATE)

    @property
    def kept(self) -> tuple[Reply, ...]:
        """Those that came too late and are kept for the next round."""
        return tuple(reply for reply in self.replies if reply.code == LATE)


@dataclass(frozen=True)
class Turn:
    """The state after `round` rounds."""

    round: int
    state: Mapping[str, Any]


class Journal:
    """One run's journal; may be used from several threads.

    Raises: OpenFedError S10 from any method: the file is damaged or the disk refuses.
    """

    def __init__(
        self, path: Path, signer: Signer | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        """`signer`: of the ledger's entries; `clock`: when they were made, for people."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        with _translated(path):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.executescript(_TABLES)
        self._path, self._clock = path, clock
        self._sign = signer.sign if signer else None
        self.identity = signer.public if signer else b""
        self._run, self._plan = self.fact("run") or "", self.fact("plan_digest") or ""
        self.head = self._tip = self._last_head()

    def close(self) -> None:
        """Waits for what another thread is writing; what comes later is refused with S10."""
        with self._lock:
            self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written inside is durable together, or not at all."""
        with self._lock, _translated(self._path):
            if self._db.in_transaction:  # the outermost one commits
                yield
                return
            self._db.execute("begin immediate")
            self._tip = self.head
            try:
                yield
            except BaseException:
                self._db.execute("rollback")
                raise
            failpoint("journal.commit")
            self._db.execute("commit")
            self.head = self._tip
        failpoint("journal.committed")

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, _translated(self._path):
            return self._db.execute(query, values).fetchall()

    def _write(self, query: str, *values: object) -> None:
        with self.transaction():
            self._db.execute(query, values)

    # -- the ledger ----------------------------------------------------------------------------

    def begin(self, facts: Mapping[str, str], told: Mapping[str, Json]) -> None:
        """The run's facts, with `run` and `plan_digest`, and the ledger's first entry."""
        self._run, self._plan = facts["run"], facts["plan_digest"]
        with self.transaction():
            self.set_facts(facts)
            self.enter(ledger.BEGUN, self._named(told))

    def adopt(self, told: Mapping[str, Json]) -> None:
        """Begin the ledger of a run that an older version began without one."""
        turn = self.turn()
        self.enter(ledger.ADOPTED, {**self._named(told), "round": turn.round if turn else -1})

    def _named(self, told: Mapping[str, Json]) -> dict[str, Json]:
        return {**told, "run": self._run, "plan": self._plan, "key": self.identity.hex()}

    def enter(self, kind: str, content: Mapping[str, Json], name: str | None = None) -> None:
        """`head` is the new entry once the transaction is durable. `name` finds it again."""
        with self.transaction():
            at = float(self._clock())
            entry = following(self._tip, at, kind, content, self._run, self._plan, self._sign)
            query = "insert into ledger values (?, ?, ?)"
            self._write(query, entry.number, entry.line().decode(), name)
            self._tip = entry.head
            failpoint("journal.entry")

    def entries(self) -> list[bytes]:
        """The lines of the ledger, in their order."""
        rows = self._rows("select entry from ledger order by number")
        return [str(line).encode() for (line,) in rows]

    def begun(self) -> bytes:
        """The ledger's first entry; empty: it has none."""
        rows = self._rows("select entry from ledger order by number limit 1")
        return str(rows[0][0]).encode() if rows else b""

    def receipt(self, ask: str, collaborator: str) -> bytes:
        """The entry of a reply that counts, or is kept to count; empty where none does."""
        return self._named_entry(f"{ask} {collaborator}")

    def _named_entry(self, name: str) -> bytes:
        rows = self._rows("select entry from ledger where name = ?", name)
        return str(rows[0][0]).encode() if rows else b""

    def _last_head(self) -> Head:
        rows = self._rows("select entry from ledger order by number desc limit 1")
        try:
            return read_entry(str(rows[0][0]).encode()).head if rows else NOTHING
        except ValueError as error:
            message = f"{self._path}: the last entry of the ledger: {error}"
            raise OpenFedError("S10", message) from error

    # -- facts about the run -------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        rows = self._rows("select value from facts where name = ?", name)
        return str(rows[0][0]) if rows else None

    def set_facts(self, facts: Mapping[str, str]) -> None:
        with self.transaction():
            for name, value in facts.items():
                self._write("insert or replace into facts values (?, ?)", name, value)
                failpoint("journal.facts")

    # -- asks ----------------------------------------------------------------------------------

    def ask_at(self, round: int, ordinal: int) -> AskRow | None:
        """The ask that was opened at this place of the flow, if one was."""
        where = "where round = ? and ordinal = ?"
        rows = self._rows(f"select id from asks {where}", round, ordinal)
        return self.ask(str(rows[0][0])) if rows else None

    def ask(self, id: str, seen: int = 0) -> AskRow | None:
        """With its replies, less the first `seen`."""
        columns = "id, round, ordinal, task, elapsed_s, met"
        rows = self._rows(f"select {columns} from asks where id = ?", id)
        if not rows:
            return None
        _, round, ordinal, task, elapsed_s, met = rows[0]
        columns = "collaborator, digest, size, code, message"
        where = "where ask = ? order by seq limit -1 offset ?"
        replies = self._rows(f"select {columns} from replies {where}", id, seen)
        given = tuple(Reply(*reply) for reply in replies)
        return AskRow(
            id, round, ordinal, task, elapsed_s, None if met is None else bool(met), given
        )

    def asks(self, since: int = 0) -> Iterator[AskRow]:
        """The asks of round `since` and later, in the order of the flow."""
        query = "select id from asks where round >= ? order by round, ordinal"
        for (id,) in self._rows(query, since):
            row = self.ask(id)
            assert row is not None
            yield row

    def open_ask(
        self, id: str, round: int, ordinal: int, task: str, told: Mapping[str, Json] | None = None
    ) -> None:
        """`told`: what the ledger says of it besides: cohort, quorum, payloads' digests."""
        query = "insert into asks (id, round, ordinal, task) values (?, ?, ?, ?)"
        about: dict[str, Json] = {"ask": id, "round": round, "ordinal": ordinal, "task": task}
        with self.transaction():
            failpoint("journal.ask")
            self._write(query, id, round, ordinal, task)
            self.enter(ledger.OPENED, {**(told or {}), **about})

    def add_reply(self, ask: str, reply: Reply) -> None:
        values = (reply.collaborator, reply.digest, reply.size, reply.code, reply.message)
        columns = "ask, collaborator, digest, size, code, message"
        about: dict[str, Json] = {"ask": ask, "collaborator": reply.collaborator}
        about |= {"digest": reply.digest, "size": reply.size}
        with self.transaction():
            failpoint("journal.reply")
            self._write(f"insert into replies ({columns}) values (?, ?, ?, ?, ?, ?)", ask, *values)
            if reply.code == LATE:
                self.enter(ledger.KEPT, about, f"{ask} {reply.collaborator}")
            elif reply.code:  # its message may hold what only the site and its aggregator may know
                self.enter(ledger.EXCLUDED, {**about, "code": reply.code})
            else:
                self.enter(ledger.COUNTED, about, f"{ask} {reply.collaborator}")

    def counts(self, collaborator: str, digest: str) -> bool:
        """Whether these bytes are a reply of this collaborator to any ask."""
        where = "where collaborator = ? and digest = ?"
        return bool(self._rows(f"select 1 from replies {where} limit 1", collaborator, digest))

    def set_elapsed(self, ask: str, seconds: float) -> None:
        failpoint("journal.elapsed")
        self._write("update asks set elapsed_s = ? where id = ?", seconds, ask)

    def close_ask(self, ask: str, met: bool) -> None:
        query = "select collaborator from replies where ask = ? and code = '' order by collaborator"
        with self.transaction():
            failpoint("journal.close")
            self._write("update asks set met = ? where id = ?", int(met), ask)
            accepted = [str(name) for (name,) in self._rows(query, ask)]
            self.enter(ledger.CLOSED, {"ask": ask, "accepted": accepted, "met": met})

    # -- turns and notes -----------------------------------------------------------------------

    def turn(self) -> Turn | None:
        """The last committed turn."""
        rows = self._rows("select round, state from turns order by round desc limit 1")
        return Turn(rows[0][0], json.loads(rows[0][1])) if rows else None

    def commit_turn(self, turn: Turn, at: float) -> None:
        """`turn.state`: the values of the flow's state, tensors as {"frame": digest}."""
        text = json.dumps(turn.state, sort_keys=True)
        with self.transaction():
            failpoint("journal.turn")
            self._write("insert into turns values (?, ?, ?)", turn.round, text, at)
            self.enter(ledger.COMMITTED, {"round": turn.round, **ledger.turn_told(text)})

    def end(self, state: str, reason: str) -> None:
        """The run is over for good: completed, failed or aborted. `reason` begins with a code."""
        facts = {"status": state, "reason": reason, "ended": str(self._clock())}
        code = reason[:3] if reason[:3] in CODES else ""  # the rest may be one site's words
        with self.transaction():
            self.set_facts(facts)
            if not self._named_entry(ledger.ENDED):  # else it was told, and the process killed
                told = {"state": state, "code": code, "model": self.fact("last") or ""}
                self.enter(ledger.ENDED, told, ledger.ENDED)

    def note(self, key: str, value: Json) -> Json:
        """Remember `value` under `key`, once; returns what is remembered (the first)."""
        with self.transaction():
            query = "insert or ignore into notes (key, value) values (?, ?)"
            self._write(query, key, json.dumps(value, sort_keys=True))
            failpoint("journal.note")
            rows = self._rows("select value from notes where key = ?", key)
        return json.loads(rows[0][0])  # type: ignore[no-any-return]

    def count_late(self, round: int, found: list[Json]) -> Json:
        """Note which late replies, as [name, digest, bytes], count in this round; once."""
        key = f"late/{round:08d}"
        with self.transaction():
            if found and not self.notes(key):
                self.enter(ledger.LATE_COUNTED, {"round": round, "replies": found})
            return self.note(key, found)

    def notes(self, prefix: str) -> list[tuple[str, Any]]:
        """(key, value) of the notes whose key starts with `prefix`, in the order they were made."""
        query = "select key, value from notes where key >= ? and key < ? order by seq"
        found = self._rows(query, prefix, prefix + "\U0010ffff")
        return [(k, json.loads(v)) for k, v in found]


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OpenFedError("S10", f"{path}: {error}") from error
