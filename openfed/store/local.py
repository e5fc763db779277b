"""The agent's own store: versioned local state, and the replies it owes.

A task reads state X and proposes Y. The encoded reply and Y are committed together before the
upload begins; a retry resends the same bytes. Y becomes the state only when the reply has been
accepted, so what a refused or late task did at the site is forgotten with it.
"""

import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from openfed.store.runs import hold
from openfed.store.spool import Spool

_TABLES = """
create table if not exists replies (
  ask text primary key, digest text not null, size integer not null, state text, ruling text);
create table if not exists states (version integer primary key, digest text not null, ask text);
"""


@dataclass(frozen=True)
class Owed:
    """A reply that is encoded. `state`: digest of the proposed local state, or None.
    `ruling` is empty until the aggregator has ruled."""

    ask: str
    digest: str
    size: int
    state: str | None
    ruling: str = ""


class LocalStore:
    """One collaborator's store of one run. Used from one thread at a time.

    Raises: OpenFedError S11: another process has it open.
    """

    def __init__(self, root: Path) -> None:
        self._held = hold(root)
        self.spool = Spool(root)
        self._db = sqlite3.connect(
            root / "local.sqlite", isolation_level=None, check_same_thread=False
        )
        self._db.execute("pragma journal_mode=wal")
        self._db.execute("pragma synchronous=full")
        self._db.executescript(_TABLES)

    def close(self) -> None:
        self._db.close()
        os.close(self._held)

    def state(self) -> str | None:
        """Digest of the current local state; None before the first."""
        query = "select digest from states order by version desc limit 1"
        row = self._db.execute(query).fetchone()
        return str(row[0]) if row else None

    def unsettled(self) -> list[Owed]:
        """The replies whose ruling is not known, oldest first."""
        query = "select ask, digest, size, state, '' from replies where ruling is null"
        rows = self._db.execute(query + " order by rowid").fetchall()
        return [Owed(*row) for row in rows]

    def owed(self, ask: str) -> Owed | None:
        query = "select ask, digest, size, state, coalesce(ruling, '') from replies where ask = ?"
        row = self._db.execute(query, (ask,)).fetchone()
        return Owed(*row) if row else None

    def owe(
        self,
        ask: str,
        frame: Iterable[bytes | memoryview],
        state: Iterable[bytes | memoryview] | None,
    ) -> Owed:
        """Commit a reply and the state it proposes, together and durably."""
        digest, size = self.spool.put(frame)
        proposed = self.spool.put(state)[0] if state is not None else None
        query = "insert or replace into replies (ask, digest, size, state) values (?, ?, ?, ?)"
        self._db.execute(query, (ask, digest, size, proposed))
        return Owed(ask, digest, size, proposed)

    def settle(self, owed: Owed, ruling: str, *, accepted: bool) -> None:
        """Record the ruling; adopt the proposed state if the reply was accepted."""
        self._db.execute("begin immediate")
        query = "update replies set ruling = ? where ask = ? and ruling is null"
        fresh = self._db.execute(query, (ruling, owed.ask)).rowcount == 1
        if fresh and accepted and owed.state is not None:
            values = (owed.state, owed.ask)
            self._db.execute("insert into states (digest, ask) values (?, ?)", values)
        self._db.execute("commit")

    def sweep(self, keep: Iterable[str]) -> None:
        """Remove blobs that are neither in `keep`, nor the state, nor owed."""
        query = "select digest, state from replies where ruling is null"
        owed = {digest for row in self._db.execute(query) for digest in row}
        self.spool.keep_only({str(x) for x in (*keep, *owed, self.state()) if x})
