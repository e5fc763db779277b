"""The ledger of a run: what happened, one signed entry after another; each holds the hash of the
one before it. Pure: no disk, no clock.

    {"at": 1789.5, "content": {...}, "hash": "...", "kind": "reply.counted", "number": 7,
     "previous": "...", "signature": "..."}

One entry is one line of canonical JSON. `hash` is SHA-256 over all but itself and the signature;
`signature` is Ed25519 by the aggregator's identity key over (run, plan, number, hash), so a number
with its hash and signature, a head, proves by itself what the aggregator has said: two heads of
one number cannot both be explained.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from openfed.errors import OpenFedError
from openfed.parse import DIGEST, strict_json
from openfed.plan.digest import canonical_json
from openfed.typing import Json
from openfed.wire.messages import Head

BEGUN, ADOPTED = "run.begun", "run.adopted"
APPROVED, OPENED, COUNTED, EXCLUDED = (
    "site.approved",
    "ask.opened",
    "reply.counted",
    "reply.excluded",
)
KEPT, LATE_COUNTED = "reply.kept", "late.counted"
CLOSED, COMMITTED, ENDED = "ask.closed", "turn.committed", "run.ended"
KINDS = (
    *(BEGUN, ADOPTED, APPROVED, OPENED, COUNTED, EXCLUDED, KEPT),
    *(CLOSED, LATE_COUNTED, COMMITTED, ENDED),
)

NOTHING = Head(0, "0" * 64)
"""What the first entry follows."""

LATE = "R11"
"""Code of a reply that came after its ask was closed, and is kept for the next round."""

MODEL, DECODED = "model", " decoded"
"""Names in a turn's state: the flow's model; what the sites have decoded of it."""

MOST_BYTES = 1 << 20
"""Of one entry."""

_HASHED, _SIGNED = b"openfed ledger entry v1\0", b"openfed ledger head v1\0"
_KEYS = frozenset({"at", "content", "hash", "kind", "number", "previous", "signature"})

Sign = Callable[[bytes], bytes]
Verify = Callable[[bytes, bytes], bool]
"""(message, signature) -> whether it is the aggregator's."""


@dataclass(frozen=True)
class Entry:
    """One line that is as it was written: its hash is that of its content."""

    number: int  # from 1
    previous: str
    at: float  # seconds since the epoch, by the aggregator's clock
    kind: str
    content: Mapping[str, Any]
    hash: str
    signature: bytes = b""  # empty: the aggregator has no identity key

    @property
    def head(self) -> Head:
        return Head(self.number, self.hash, self.signature)

    def line(self) -> bytes:
        """Without a newline."""
        told = _told(self.number, self.previous, self.at, self.kind, self.content)
        return canonical_json({**told, "hash": self.hash, "signature": self.signature.hex()})


def following(
    before: Head, at: float, kind: str, content: Mapping[str, Json], run: str, plan: str,
    sign: Sign | None,
) -> Entry:  # fmt: skip
    """The entry that comes after the head `before`, of this run under the plan of this digest."""
    number, previous = before.number + 1, before.hash
    hash = _hash(_told(number, previous, at, kind, content))
    signature = sign(head_message(run, plan, number, hash)) if sign else b""
    return Entry(number, previous, at, kind, content, hash, signature)


def check_key(first: bytes, public: bytes) -> None:
    """Raises: OpenFedError J09: the ledger with this first entry was begun with another key. J01:
    that entry was changed."""
    try:
        begun = str(read_entry(first).content.get("key", ""))
    except ValueError as error:
        raise OpenFedError("J01", f"entry 1 of the run's ledger: {error}") from error
    if begun != public.hex():
        expected, found = (key[:16] or "none" for key in (begun, public.hex()))
        message = f"expected the identity key {expected} that began the run's ledger, found {found}"
        raise OpenFedError("J09", f"{message}: put that key back, or begin a run anew with --new")


def turn_told(state: str) -> dict[str, Json]:
    """What an entry says of a turn's state, given as JSON: the frames that are known by name, and
    a hash of all."""
    told = json.loads(state)
    frames = (told.get(name) for name in (MODEL, DECODED))
    model, decoded = (each.get("frame", "") if isinstance(each, dict) else "" for each in frames)
    return {
        "model": model,
        "decoded": decoded,
        "state": hashlib.sha256(state.encode()).hexdigest(),
    }


def head_message(run: str, plan: str, number: int, hash: str) -> bytes:
    """What the aggregator signs."""
    return _SIGNED + canonical_json({"run": run, "plan": plan, "number": number, "hash": hash})


def read_entry(line: bytes) -> Entry:
    """Raises: ValueError: it is none, or not as it was written."""
    if len(line) > MOST_BYTES:
        raise ValueError(f"it has {len(line)} bytes, at most {MOST_BYTES}")
    try:
        told = strict_json(line)
    except ValueError:
        raise ValueError("it is broken off or no JSON") from None
    if not isinstance(told, dict) or told.keys() != _KEYS:
        raise ValueError(f"expected the keys {', '.join(sorted(_KEYS))}")
    entry = Entry(
        _number(told["number"]),
        _digest("previous", told["previous"]),
        _time(told["at"]),
        _text("kind", told["kind"]),
        _object(told["content"]),
        _digest("hash", told["hash"]),
        _signature(told["signature"]),
    )
    if entry.line() != line:
        raise ValueError("it is not in the form in which it was written")
    own = _hash(_told(entry.number, entry.previous, entry.at, entry.kind, entry.content))
    if own != entry.hash:
        raise ValueError(f"its content has the hash {own[:16]}, it says {entry.hash[:16]}")
    return entry


def _told(
    number: int, previous: str, at: float, kind: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    told = {"number": number, "previous": previous, "at": at, "kind": kind}
    return {**told, "content": dict(content)}


def _hash(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(_HASHED + canonical_json(dict(told))).hexdigest()


def _number(value: object) -> int:
    if type(value) is not int or not 1 <= value < 1 << 53:
        raise ValueError("its number is none")
    return value


def _time(value: object) -> float:
    if type(value) is not float:
        raise ValueError("its time is none")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"its {name} is no text")
    return value


def _digest(name: str, value: object) -> str:
    if not isinstance(value, str) or not DIGEST.fullmatch(value):
        raise ValueError(f"its {name} is no digest")
    return value


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("its content is no object")
    return value


def _signature(value: object) -> bytes:
    if not isinstance(value, str) or len(value) not in (0, 128) or value != value.lower():
        raise ValueError("its signature is not one of 64 bytes")
    return bytes.fromhex(value)


# -- verifying: the chain --------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """What is wrong with an entry; `kind` is empty where it cannot be known, `number` is 0 where
    it is none of the ledger's."""

    code: str
    number: int
    kind: str
    message: str

    def __str__(self) -> str:
        kind = f" ({self.kind})" if self.kind else ""
        where = f"entry {self.number}{kind}: " if self.number else ""
        return f"{self.code}  {where}{self.message}"


def read_chain(lines: Iterable[bytes]) -> tuple[dict[int, Entry], list[Fault]]:
    """The entries that are as they were written, by number; and what is wrong with the lines:
    J01 changed, J02 missing, twice, out of order, of another history."""
    entries, broken, faults = dict[int, Entry](), set[int](), list[Fault]()
    last = 0
    for line in lines:
        try:
            entry = read_entry(line)
        except ValueError as error:
            last += 1  # where it stands: what it says of itself is worth nothing
            broken.add(last)
            faults.append(Fault("J01", last, _kind_of(line), str(error)))
            continue
        if wrong := _out_of_place(entry, entries.get(entry.number), last):
            faults.append(Fault("J02", entry.number, entry.kind, wrong))
        entries.setdefault(entry.number, entry)
        last = entry.number
    faults += _gaps(entries.keys() | broken)
    faults += _wrong_links(entries)
    return dict(sorted(entries.items())), sorted(faults, key=lambda fault: fault.number)


def _kind_of(line: bytes) -> str:
    """What a broken entry says that it is, if it is one of ours."""
    try:
        kind = strict_json(line)["kind"]
    except (ValueError, TypeError, KeyError):
        return ""
    return kind if kind in KINDS else ""


def _out_of_place(entry: Entry, known: Entry | None, last: int) -> str:
    if known is not None:
        same = known.hash == entry.hash
        found = f"{known.hash[:16]} and {entry.hash[:16]}"
        return "it is there twice" if same else f"there are two of this number: {found}"
    return f"it stands after entry {last}" if entry.number < last else ""


def _gaps(numbers: Iterable[int]) -> Iterator[Fault]:
    expected = 1
    for number in sorted(numbers):
        if number > expected:
            rest = f" to {number - 1}" if number - 1 > expected else ""
            yield Fault("J02", expected, "", f"missing: {expected}{rest}, before entry {number}")
        expected = number + 1


def _wrong_links(entries: Mapping[int, Entry]) -> Iterator[Fault]:
    for number, entry in sorted(entries.items()):
        before = entries[number - 1].hash if number - 1 in entries else None
        if number == 1:
            before = NOTHING.hash
        if before is not None and entry.previous != before:
            message = (
                f"it follows an entry {number - 1} of hash {entry.previous[:16]}, there is one of "
                f"{before[:16]}: one of the two is of another history"
            )
            yield Fault("J02", number, entry.kind, message)


def wrong_signatures(
    entries: Mapping[int, Entry], run: str, plan: str, verify: Verify
) -> Iterator[Fault]:
    """J03 for each entry that the aggregator has not signed."""
    for number, entry in entries.items():
        if not verify(head_message(run, plan, number, entry.hash), entry.signature):
            why = "it is not signed by the aggregator" if entry.signature else "it is not signed"
            yield Fault("J03", number, entry.kind, why)


# -- verifying: the story --------------------------------------------------------------------------


@dataclass
class AskTold:
    """One ask, as the entries tell it. `met` is None while it is open."""

    id: str
    round: int
    ordinal: int
    task: str
    cohort: tuple[str, ...]
    quorum: int
    model: str  # digest of the model that the sites were given
    replies: dict[str, tuple[str, int, str]] = field(default_factory=dict)  # digest, bytes, code
    met: bool | None = None

    @property
    def counted(self) -> list[str]:
        return sorted(name for name, (_, _, code) in self.replies.items() if not code)


@dataclass(frozen=True)
class TurnTold:
    model: str
    decoded: str  # what the sites worked on in the round, where the downlink loses something
    state: str  # SHA-256 of the state as it was journaled


@dataclass
class Story:
    """What the entries tell, put together."""

    run: str = ""
    plan: str = ""
    key: str = ""  # of the aggregator, as it says itself
    adopted: int | None = None  # the round after which an older version's run got its ledger
    asks: dict[str, AskTold] = field(default_factory=dict)
    turns: dict[int, TurnTold] = field(default_factory=dict)
    since: list[AskTold] = field(default_factory=list)  # the asks after the last turn
    late: set[tuple[str, str]] = field(default_factory=set)  # who, and which bytes, counted late
    approvals: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    ended: str = ""


def story_of(entries: Mapping[int, Entry]) -> tuple[Story, list[Fault]]:
    """What the entries tell, and J04 for each that contradicts those before it."""
    story, faults = Story(), list[Fault]()
    for number, entry in entries.items():
        try:
            wrong = _tell(story, number, entry)
        except (KeyError, TypeError, ValueError):
            wrong = "its content is not that of such an entry"
        if wrong:
            faults.append(Fault("J04", number, entry.kind, wrong))
    return story, faults


def _tell(story: Story, number: int, entry: Entry) -> str:
    """Take one entry over into the story; what is wrong with it, or nothing."""
    if entry.kind not in KINDS:
        return "this version knows no such entries"
    if (entry.kind in (BEGUN, ADOPTED)) != (number == 1):
        return "a ledger begins with its run, once"
    if story.ended and entry.kind != APPROVED:
        return "the run had ended"
    return _RULES[entry.kind](story, entry)


def _begun(story: Story, entry: Entry) -> str:
    told = entry.content
    story.run, story.plan, story.key = str(told["run"]), str(told["plan"]), str(told["key"])
    if entry.kind == ADOPTED:
        story.adopted = int(told["round"])
    return ""


def _approved(story: Story, entry: Entry) -> str:
    approval = entry.content["approval"]
    story.approvals.append((entry.number, approval))
    return "" if approval["name"] == entry.content["collaborator"] else "it is of another site"


def _opened(story: Story, entry: Entry) -> str:
    told = entry.content
    ask = AskTold(
        str(told["ask"]),
        int(told["round"]),
        int(told["ordinal"]),
        str(told["task"]),
        tuple(map(str, told["cohort"])),
        int(told["quorum"]),
        str(told["payloads"]["model"]),
    )
    if ask.id in story.asks:
        return f"ask {ask.id} was opened before"
    story.asks[ask.id] = ask
    story.since.append(ask)
    last = max(story.turns, default=story.adopted)
    if last is not None and ask.round != last + 1:
        return f"ask {ask.id} is of round {ask.round}, after turn {last}"
    return ""


def _replied(story: Story, entry: Entry) -> str:
    told = entry.content
    id, name, kept = str(told["ask"]), str(told["collaborator"]), entry.kind == KEPT
    ask = story.asks.get(id)
    if ask is None:
        return "" if story.adopted is not None else f"ask {id} was never opened"
    code = {EXCLUDED: str(told.get("code", "")), KEPT: LATE}.get(entry.kind, "")
    if entry.kind == EXCLUDED and not code:
        return "a reply is excluded for a reason"
    if name not in ask.cohort:
        return f"{name} was not asked {id}"
    if name in ask.replies:
        return f"{name} had answered ask {id}"
    ask.replies[name] = (str(told["digest"]), int(told["size"]), code)
    if kept and not ask.met:
        return f"only after ask {id} was closed can a reply be late for it"
    return "" if kept or ask.met is None else f"ask {id} was closed"


def _late(story: Story, entry: Entry) -> str:
    """Late replies that count in a round are those that were kept in the round before."""
    round = int(entry.content["round"])
    before = [ask for ask in story.asks.values() if ask.round == round - 1]
    kept = {
        (name, digest)
        for ask in before
        for name, (digest, _, code) in ask.replies.items()
        if code == LATE
    }
    found = {(str(name), str(digest)) for name, digest, _ in entry.content["replies"]}
    story.late |= found
    first = story.adopted is not None and round <= story.adopted + 2
    return "" if first or found <= kept else f"not all of these were kept in round {round - 1}"


def _closed(story: Story, entry: Entry) -> str:
    told = entry.content
    id, accepted, met = str(told["ask"]), list(told["accepted"]), bool(told["met"])
    ask = story.asks.get(id)
    if ask is None:
        return "" if story.adopted is not None else f"ask {id} was never opened"
    if ask.met is not None:
        return f"ask {id} was closed before"
    ask.met = met
    if accepted != ask.counted:
        return f"it accepts {accepted}, and the replies that counted are of {ask.counted}"
    if met and len(accepted) < ask.quorum:
        return f"{len(accepted)} replies are no quorum of {ask.quorum}"
    return ""


def _committed(story: Story, entry: Entry) -> str:
    told = entry.content
    round, turn = int(told["round"]), TurnTold(*(str(told[key]) for key in _OF_TURN))
    first = 0 if story.adopted is None else story.adopted + 1
    expected = max(story.turns, default=first - 1) + 1
    asks, story.since = story.since, []
    before, story.turns[round] = story.turns.get(round - 1), turn
    if round != expected:
        return f"turn {round} is committed where turn {expected} was due"
    if still := [ask.id for ask in asks if ask.met is None]:
        return f"ask {still[0]} of the round was open"
    return _of_another_model(asks, before, turn.decoded)


def _of_another_model(asks: Iterable[AskTold], before: TurnTold | None, decoded: str) -> str:
    """A round's asks give the model of the turn before it, or what the sites decoded of that."""
    known = {before.model, decoded} if before and before.model else set[str]()
    wrong = (ask for ask in asks if known and ask.model not in known)
    return next((f"ask {ask.id} gave another model than the turn before made" for ask in wrong), "")


_OF_TURN = ("model", "decoded", "state")


def _ended(story: Story, entry: Entry) -> str:
    story.ended = str(entry.content["state"])
    last = story.turns.get(max(story.turns, default=0))
    return "" if last and last.decoded else _of_another_model(story.since, last, "")


_RULES: Mapping[str, Callable[[Story, Entry], str]] = {
    BEGUN: _begun,
    ADOPTED: _begun,
    APPROVED: _approved,
    OPENED: _opened,
    COUNTED: _replied,
    EXCLUDED: _replied,
    KEPT: _replied,
    LATE_COUNTED: _late,
    CLOSED: _closed,
    COMMITTED: _committed,
    ENDED: _ended,
}
