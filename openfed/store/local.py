"""The agent's own store: versioned local state, and the replies it owes.

A task reads state X and proposes Y. The encoded reply and Y are committed together before the
reply is reported; a retry resends the same bytes. Y becomes the state only when the reply has been
accepted, so what a refused or late task did at the site is forgotten with it.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openfed.errors import OpenFedError
from openfed.failpoints import failpoint
from openfed.store.runs import hold
from openfed.store.spool import Spool

_TABLES = """
create table if not exists replies (
  ask text primary key, upload text not null, digest text not null, size integer not null,
  states text not null, ruling text);
create table if not exists states (
  version integer primary key, name text not null, digest text not null, ask text);
"""

TASK, RESIDUAL = "task", "residual"
"""What is kept between tasks: the task's own entries; what compression has not sent yet."""


@dataclass(frozen=True)
class Owed:
    """A reply that is encoded. `states`: name -> digest of the local states that it proposes.
    `ruling` is empty until the aggregator has ruled."""

    ask: str
    upload: str  # names this encoding to the aggregator
    digest: str
    size: int
    states: Mapping[str, str]
    ruling: str = ""


class _Connection(sqlite3.Connection):
    """Raises OpenFedError S10 where SQLite has a fault."""

    def execute(self, query: str, values: Any = (), /) -> sqlite3.Cursor:
        try:
            return super().execute(query, values)
        except sqlite3.Error as error:
            raise OpenFedError("S10", f"the agent's local.sqlite: {error}") from error


class LocalStore:
    """One collaborator's store of one run. Used from one thread at a time.

    Raises: OpenFedError S11: another process has it open; S10 from any method: the file is damaged
    or the disk refuses.
    """

    def __init__(self, root: Path) -> None:
        self._held = hold(root)
        self.spool = Spool(root)
        self._db = sqlite3.connect(
            root / "local.sqlite",
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(_TABLES)
        self.spool.recover(self._kept())  # what was fetched last need not be fetched again

    def close(self) -> None:
        self._db.close()
        os.close(self._held)

    def state(self, name: str) -> str | None:
        """Digest of the current local state of this name; None before the first."""
        query = "select digest from states where name = ? order by version desc limit 1"
        row = self._db.execute(query, (name,)).fetchone()
        return str(row[0]) if row else None

    def unsettled(self) -> list[Owed]:
        """The replies whose ruling is not known, oldest first."""
        query = f"select {_COLUMNS} from replies where ruling is null order by rowid"
        return [_owed(row) for row in self._db.execute(query)]

    def owed(self, ask: str) -> Owed | None:
        query = f"select {_COLUMNS} from replies where ask = ?"
        row = self._db.execute(query, (ask,)).fetchone()
        return _owed(row) if row else None

    def sent(self) -> int:
        """Bytes of all replies so far, each counted once."""
        (total,) = self._db.execute("select coalesce(sum(size), 0) from replies").fetchone()
        return int(total)

    def owe(self, owed: Owed) -> None:
        """Commit a reply and the states it proposes, whose blobs are on disk."""
        columns = "ask, upload, digest, size, states"
        query = f"insert or replace into replies ({columns}) values (?, ?, ?, ?, ?)"
        states = json.dumps(dict(owed.states))
        failpoint("local.owe")
        self._db.execute(query, (owed.ask, owed.upload, owed.digest, owed.size, states))
        failpoint("local.owed")

    def settle(self, owed: Owed, ruling: str, *, accepted: bool) -> None:
        """Record the ruling; adopt the proposed states if the reply was accepted."""
        failpoint("local.settle")
        self._db.execute("begin immediate")
        query = "update replies set ruling = ? where ask = ? and ruling is null"
        fresh = self._db.execute(query, (ruling, owed.ask)).rowcount == 1
        failpoint("local.ruled")
        if fresh and accepted:
            for name, digest in owed.states.items():
                values = (name, digest, owed.ask)
                self._db.execute("insert into states (name, digest, ask) values (?, ?, ?)", values)
        self._db.execute("commit")
        failpoint("local.settled")

    def sweep(self, keep: Iterable[str]) -> None:
        """Remove blobs that are neither in `keep`, nor a state, nor owed."""
        self.spool.keep_only({*keep, *self._kept()})

    def _kept(self) -> set[str]:
        owed = self.unsettled()
        proposed = {digest for each in owed for digest in each.states.values()}
        states = {found for name in (TASK, RESIDUAL) if (found := self.state(name))}
        return {each.digest for each in owed} | proposed | states


_COLUMNS = "ask, upload, digest, size, states, coalesce(ruling, '')"


def _owed(row: tuple[str, str, str, int, str, str]) -> Owed:
    ask, upload, digest, size, states, ruling = row
    return Owed(ask, upload, digest, size, json.loads(states), ruling)
