"""What must be true after a run, whatever was done to it: read from its files alone.

The journals are read as SQLite files, and the models are computed again, from the initial model and
the packets in the spool, with the few lines of numpy below. Nothing here asks the code that made
them, but for the decoder of packets and frames.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from openfed.codec.pipeline import Pipeline
from openfed.errors import OpenFedError
from openfed.launch.ledger import verify_ledger
from openfed.plan.lock import Lock, read_lock
from openfed.store.packets import open_packet
from openfed.store.witness import FILE
from openfed.tensors.frame import CHUNK, blocks
from openfed.tensors.model_file import read_model
from openfed.tensors.record import FLOATING, Record
from openfed.tensors.update import update_signature
from openfed.workspace import Workspace

KEPT = "R11"
"""The code of a late reply that counts in the next round."""
ENDED = ("completed", "failed", "aborted")
Tensors = dict[str, np.ndarray[Any, Any]]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Violation:
    invariant: str
    text: str

    def __str__(self) -> str:
        return f"{self.invariant}: {self.text}"


@dataclass(frozen=True)
class Ran:
    """A run's files. `sites`: each site's workspace; `expected`: the digest of the model of the
    undisturbed run, where every site must answer; "" where it may differ."""

    aggregator: Path
    sites: Mapping[str, Path]
    expected: str

    @property
    def folder(self) -> Path:
        """Of the latest run."""
        return max((self.aggregator / "runs").glob("*/journal.sqlite")).parent

    @property
    def rounds(self) -> int:
        """How many the journal has committed."""
        try:
            with _reading(self.folder / "journal.sqlite") as db:
                (found,) = db.execute("select coalesce(max(round), 0) from turns").fetchone()
        except (ValueError, sqlite3.Error):
            return 0
        return int(found)

    @property
    def late(self) -> int:
        """How many replies have counted a round after they were asked for."""
        with _reading(self.folder / "journal.sqlite") as db:
            return sum(map(len, _late(_rows(db, "select * from notes")).values()))

    @property
    def lock(self) -> Lock:
        return read_lock(self.aggregator / "plan" / "plan.lock")


def violations(ran: Ran) -> list[Violation]:
    """Everything that is wrong with a run that has ended."""
    if not any((ran.aggregator / "runs").glob("*/journal.sqlite")):
        return [Violation("journal", "there is none")]
    try:
        return _read(ran)
    except sqlite3.DatabaseError as error:
        return [Violation("journal", str(error))]


def _read(ran: Ran) -> list[Violation]:
    with _reading(ran.folder / "journal.sqlite") as journal:
        (sound,) = journal.execute("pragma integrity_check").fetchone()
        if sound != "ok":
            return [Violation("journal", str(sound))]
        facts = {row["name"]: row["value"] for row in _rows(journal, "select * from facts")}
        asks = _rows(journal, "select * from asks order by round, ordinal")
        replies = _rows(journal, "select * from replies order by seq")
        turns = _rows(journal, "select * from turns order by rowid")
        notes = _rows(journal, "select * from notes order by seq")
    named = ran.lock.plan.named
    return [
        *_status(facts),
        *_asks(asks, facts),
        *_counted(asks, replies, named),
        *_quorum(asks, replies, ran.lock),
        *_rounds(turns, facts, ran.lock),
        *_models(ran, asks, replies, turns, _late(notes), facts.get("status") == "completed"),
        *_late_once(asks, replies, _late(notes)),
        *_saved(ran, facts, turns),
        *_receipts(ran, replies),
        *_partial(ran),
        *_ledger(ran),
    ]


class _reading:
    """A connection that cannot write."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        self.db.row_factory = sqlite3.Row

    def __enter__(self) -> sqlite3.Connection:
        return self.db

    def __exit__(self, *_: object) -> None:
        self.db.close()


def _rows(db: sqlite3.Connection, query: str) -> Rows:
    return [dict(row) for row in db.execute(query)]


# -- what the journal says ---------------------------------------------------------------------


def _status(facts: Mapping[str, str]) -> Iterator[Violation]:
    status, reason = facts.get("status", ""), facts.get("reason", "")
    if status not in ENDED:
        yield Violation("one terminal status", f"expected one of {ENDED}, found {status!r}")
    elif status != "completed" and not reason:
        yield Violation("one terminal status", f"{status} without a reason")


def _asks(asks: Rows, facts: Mapping[str, str]) -> Iterator[Violation]:
    places = [(ask["round"], ask["ordinal"]) for ask in asks]
    for round in {ask["round"] for ask in asks}:
        ordinals = [ordinal for at, ordinal in places if at == round]
        if ordinals != list(range(len(ordinals))):
            yield Violation("rounds only rise", f"round {round} has the asks {ordinals}")
    for ask in asks:
        if facts.get("status") == "completed" and ask["met"] != 1:
            text = f"{_place(ask)} is {'open' if ask['met'] is None else 'below its quorum'}"
            yield Violation("quorum", f"{text} in a completed run")


def _place(ask: Mapping[str, Any]) -> str:
    return f"round {ask['round']}, ask {ask['ordinal']} ({ask['task']})"


def _counted(asks: Rows, replies: Rows, named: Sequence[str]) -> Iterator[Violation]:
    known, seen = {ask["id"] for ask in asks}, set[tuple[str, str]]()
    for reply in replies:
        key = (reply["ask"], reply["collaborator"])
        if key in seen:
            yield Violation("counts once", f"{key[1]} answered ask {key[0]} twice")
        seen.add(key)
        if key[0] not in known or key[1] not in named:
            yield Violation("counts once", f"nobody asked {key[1]} for {key[0]}")


def _accepted(replies: Rows, ask: str) -> Rows:
    """In name order."""
    mine = [reply for reply in replies if reply["ask"] == ask and not reply["code"]]
    return sorted(mine, key=lambda reply: reply["collaborator"])


def _quorum(asks: Rows, replies: Rows, lock: Lock) -> Iterator[Violation]:
    sites = len(lock.plan.named)
    quorum = sites if lock.plan.cohort.quorum == "all" else int(lock.plan.cohort.quorum)
    for ask in asks:
        count = len(_accepted(replies, ask["id"]))
        if ask["met"] and count < quorum:
            text = f"{_place(ask)}: {count} replies, and a quorum of {quorum} is said to be met"
            yield Violation("quorum", text)
        if ask["met"] == 0 and count >= quorum:
            yield Violation("quorum", f"{_place(ask)}: {count} replies, and {quorum} are too few")


def _rounds(turns: Rows, facts: Mapping[str, str], lock: Lock) -> Iterator[Violation]:
    found = [turn["round"] for turn in turns]
    if found != list(range(len(found))):
        yield Violation("rounds only rise", f"the journal has the rounds {found}")
    if facts.get("status") == "completed" and found[-1:] != [lock.plan.rounds]:
        yield Violation("rounds only rise", f"completed after {found[-1:]} of {lock.plan.rounds}")


# -- the models, computed again ----------------------------------------------------------------


def _late(notes: Rows) -> dict[int, Rows]:
    """The replies that came too late for the round before, and count in this one, by round."""
    found = {}
    for note in notes:
        kind, _, round = note["key"].partition("/")
        if kind == "late":
            keys = ("collaborator", "digest")
            found[int(round)] = [
                dict(zip(keys, each, strict=False)) for each in json.loads(note["value"])
            ]
    return found


def _late_once(asks: Rows, replies: Rows, late: Mapping[int, Rows]) -> Iterator[Violation]:
    """What counts a round later did not count before, and was an answer to that round's ask."""
    training = {ask["id"]: ask["round"] for ask in asks if ask["task"] == "train"}
    kept = {
        (training.get(reply["ask"]), reply["collaborator"], reply["digest"])
        for reply in replies
        if reply["code"] == KEPT
    }
    for round, counted in late.items():
        for each in counted:
            key = (round - 1, each["collaborator"], each["digest"])
            if key not in kept or counted.count(each) > 1:
                yield Violation("counts once", f"round {round}: {key} is no late reply, or twice")


def _models(
    ran: Ran,
    asks: Rows,
    replies: Rows,
    turns: Rows,
    late: Mapping[int, Rows],
    completed: bool,
) -> Iterator[Violation]:
    """global_r = global_(r-1) + the weighted mean of exactly what was accepted in round r, and of
    what came too late for the round before where the plan keeps that, after it."""
    model: Tensors = {k: np.array(v) for k, v in read_model(_saved_model(ran, "init")).items()}
    training = {ask["round"]: ask["id"] for ask in asks if ask["task"] == "train"}
    digest = _digest(model)
    for turn in turns:
        if turn["round"]:
            accepted = _accepted(replies, training.get(turn["round"], ""))
            accepted += late.get(turn["round"], [])
            try:
                updates = [_update(ran, each) for each in accepted]
                model = _added(model, updates)
            except (OpenFedError, OSError, ValueError, IndexError) as error:
                yield Violation("the formula", f"round {turn['round']}: {error}")
                return
            digest = _digest(model)
        found = json.loads(turn["state"])["model"]["frame"]
        if found != digest:
            text = f"round {turn['round']}: expected model {digest[:16]}, found {found[:16]}"
            yield Violation("the formula", text)
            return
    if completed and ran.expected and digest != ran.expected:
        text = f"expected model {ran.expected[:16]} of the undisturbed run, found {digest[:16]}"
        yield Violation("the undisturbed model", text)


def _saved_model(ran: Ran, which: str) -> Path:
    return ran.aggregator / "save" / f"{ran.lock.plan.name}_{which}.safetensors"


def _digest(model: Tensors) -> str:
    return blake3(b"".join(bytes(block) for block in blocks(Record(model)))).hexdigest()


def _update(ran: Ran, reply: Mapping[str, Any]) -> tuple[float, Tensors]:
    """Samples and decoded tensors of a packet in the spool, whose bytes are what its name says."""
    path = ran.folder / "blobs" / f"{reply['collaborator']}.{reply['digest']}"
    if blake3(path.read_bytes()).hexdigest() != reply["digest"]:
        raise ValueError(f"{path.name} holds other bytes")
    lock = ran.lock
    chains = Pipeline(lock.plan.compression_pipeline.uplink).chains(
        update_signature(lock.signature)
    )
    tensors: Tensors = {}
    with open_packet(path, limit=path.stat().st_size, allowed=chains) as packet:
        for spec in packet.specs:
            flat = tensors.setdefault(spec.name, np.empty(spec.shape, spec.dtype)).reshape(-1)
            for start in range(0, spec.count, CHUNK):
                packet.read(spec.name, start, flat[start : start + CHUNK])
        return packet.numbers["n"][0], tensors


def _added(model: Tensors, updates: Sequence[tuple[float, Tensors]]) -> Tensors:
    """In name order: w + (n_1 d_1 + n_2 d_2 + ...) / (n_1 + n_2 + ...), rounded at every step to
    float32 (float64 for entries of float64). Other entries take the largest value."""
    moved = {}
    for name, old in model.items():
        given = [tensors[name] for _, tensors in updates]
        if old.dtype.name not in FLOATING:
            moved[name] = np.maximum.reduce(given)
            continue
        real = np.float64 if old.dtype == np.float64 else np.float32
        total = real(updates[0][0]) * given[0]
        for (n, _), change in zip(updates[1:], given[1:], strict=True):
            total = total + real(n) * change
        mean = total / real(sum(n for n, _ in updates))
        moved[name] = np.asarray((old.astype(real) + mean).astype(old.dtype))
    return moved


def _saved(ran: Ran, facts: Mapping[str, str], turns: Rows) -> Iterator[Violation]:
    """The file that people use is the last committed model."""
    if facts.get("status") not in ENDED or len(turns) < 2:
        return
    last = json.loads(turns[-1]["state"])["model"]["frame"]
    path = _saved_model(ran, "last")
    found = _digest(dict(read_model(path))) if path.exists() else "no file"
    told = json.loads((ran.aggregator / "save" / "manifest.json").read_text())
    for where, value in (
        (path.name, found),
        ("the journal's `last`", facts.get("last", "")),
        ("manifest.json", told["models"].get("last", {}).get("digest", "")),
    ):
        if value != last:
            text = f"expected {last[:16]} in {where}, found {value[:16]}"
            yield Violation("the saved model", text)


# -- what the sites know, and what lies about --------------------------------------------------


def _receipts(ran: Ran, replies: Rows) -> Iterator[Violation]:
    """What a site was told counts is what the journal counts of it."""
    counts = [reply for reply in replies if reply["code"] in ("", KEPT)]
    counted = {(r["ask"], r["collaborator"]): r["digest"] for r in counts}
    for name, folder in ran.sites.items():
        store = folder / "runs" / ran.folder.name / "agents" / name / "local.sqlite"
        if not store.exists():
            continue
        with _reading(store) as db:
            rows = _rows(db, "select ask, digest, ruling from replies")
        for row in rows:
            found = counted.get((row["ask"], name))
            if row["ruling"] in ("accepted", "duplicate") and found != row["digest"]:
                text = f"{name} was told that {row['digest'][:16]} counts; the journal: {found}"
                yield Violation("receipts", text)
            if row["ruling"] not in ("accepted", "duplicate", None) and found == row["digest"]:
                text = f"{name} was told {row['ruling']} of what counts: {row['digest'][:16]}"
                yield Violation("receipts", text)


def _ledger(ran: Ran) -> Iterator[Violation]:
    """What `fx ledger verify` says of it, against what every site has kept."""
    folders = {name: folder / "runs" / ran.folder.name for name, folder in ran.sites.items()}
    kept = [folder / "agents" / name / FILE for name, folder in folders.items()]
    against = [path for path in kept if path.exists()]
    try:
        found = verify_ledger(Workspace(ran.aggregator), None, against, None)
    except OpenFedError as error:
        yield Violation("the ledger", str(error))
        return
    for fault in found.all_faults:
        yield Violation("the ledger", str(fault))


def _partial(ran: Ran) -> Iterator[Violation]:
    for folder in (ran.aggregator, *ran.sites.values()):
        for path in (folder / "save").glob(".*"):
            yield Violation("no partial files", str(path))
    for path in (ran.folder / "growing").glob("*"):
        yield Violation("no partial files", str(path))
