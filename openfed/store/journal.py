"""The journal: the one durable truth of a run, in SQLite.

A method returns only when what it wrote would survive a loss of power (WAL, synchronous=FULL).
Nothing here decides: it stores what `openfed.ask` and the flow decided, in the order it happened.
"""

import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.errors import OpenFedError
from openfed.typing import Json

_TABLES = """
create table if not exists facts (name text primary key, value text not null);
create table if not exists asks (
  id text primary key, round integer not null, ordinal integer not null, task text not null,
  elapsed_s real not null default 0, met integer, unique (round, ordinal));
create table if not exists replies (
  seq integer primary key, ask text not null references asks, collaborator text not null,
  digest text not null, size integer not null, code text not null, message text not null,
  unique (ask, collaborator));
create table if not exists turns (
  round integer primary key, state text not null, at real not null);
create table if not exists notes (
  seq integer primary key, key text not null unique, value text not null);
"""


LATE = "R11"
"""Code of a reply that came after its ask was closed, and is kept for the next round."""


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
    replies: tuple[Reply, ...]  # in the order in which they were taken

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

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.RLock()
        with _translated(path):
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.executescript(_TABLES)
        self._path = path

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
            try:
                yield
            except BaseException:
                self._db.execute("rollback")
                raise
            self._db.execute("commit")

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock, _translated(self._path):
            return self._db.execute(query, values).fetchall()

    def _write(self, query: str, *values: object) -> None:
        with self.transaction():
            self._db.execute(query, values)

    # -- facts about the run -------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        rows = self._rows("select value from facts where name = ?", name)
        return str(rows[0][0]) if rows else None

    def set_facts(self, facts: Mapping[str, str]) -> None:
        with self.transaction():
            for name, value in facts.items():
                self._write("insert or replace into facts values (?, ?)", name, value)

    # -- asks ----------------------------------------------------------------------------------

    def ask_at(self, round: int, ordinal: int) -> AskRow | None:
        """The ask that was opened at this place of the flow, if one was."""
        where = "where round = ? and ordinal = ?"
        rows = self._rows(f"select id from asks {where}", round, ordinal)
        return self.ask(str(rows[0][0])) if rows else None

    def ask(self, id: str) -> AskRow | None:
        columns = "id, round, ordinal, task, elapsed_s, met"
        rows = self._rows(f"select {columns} from asks where id = ?", id)
        if not rows:
            return None
        _, round, ordinal, task, elapsed_s, met = rows[0]
        columns = "collaborator, digest, size, code, message"
        replies = self._rows(f"select {columns} from replies where ask = ? order by seq", id)
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

    def open_ask(self, id: str, round: int, ordinal: int, task: str) -> None:
        query = "insert into asks (id, round, ordinal, task) values (?, ?, ?, ?)"
        self._write(query, id, round, ordinal, task)

    def add_reply(self, ask: str, reply: Reply) -> None:
        values = (reply.collaborator, reply.digest, reply.size, reply.code, reply.message)
        columns = "ask, collaborator, digest, size, code, message"
        self._write(f"insert into replies ({columns}) values (?, ?, ?, ?, ?, ?)", ask, *values)

    def counts(self, collaborator: str, digest: str) -> bool:
        """Whether these bytes are a reply of this collaborator to any ask."""
        where = "where collaborator = ? and digest = ?"
        return bool(self._rows(f"select 1 from replies {where} limit 1", collaborator, digest))

    def set_elapsed(self, ask: str, seconds: float) -> None:
        self._write("update asks set elapsed_s = ? where id = ?", seconds, ask)

    def close_ask(self, ask: str, met: bool) -> None:
        self._write("update asks set met = ? where id = ?", int(met), ask)

    # -- turns and notes -----------------------------------------------------------------------

    def turn(self) -> Turn | None:
        """The last committed turn."""
        rows = self._rows("select round, state from turns order by round desc limit 1")
        return Turn(rows[0][0], json.loads(rows[0][1])) if rows else None

    def commit_turn(self, turn: Turn, at: float) -> None:
        text = json.dumps(turn.state, sort_keys=True)
        self._write("insert into turns values (?, ?, ?)", turn.round, text, at)

    def note(self, key: str, value: Json) -> Json:
        """Remember `value` under `key`, once; returns what is remembered (the first)."""
        with self.transaction():
            query = "insert or ignore into notes (key, value) values (?, ?)"
            self._write(query, key, json.dumps(value, sort_keys=True))
            rows = self._rows("select value from notes where key = ?", key)
        return json.loads(rows[0][0])  # type: ignore[no-any-return]

    def notes(self, prefix: str) -> list[tuple[str, Any]]:
        """(key, value) of the notes whose key starts with `prefix`, in the order they were made."""
        query = "select key, value from notes where substr(key, 1, ?) = ? order by seq"
        return [(k, json.loads(v)) for k, v in self._rows(query, len(prefix), prefix)]


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OpenFedError("S10", f"{path}: {error}") from error
