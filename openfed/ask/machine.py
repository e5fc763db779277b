"""The life of one ask, as a pure function.

Rule: everything that decides whether a reply counts, and whether an ask is over, is in this file.
The shell around it makes the effects durable, then adopts the new state, then answers. So the
order of events is the journal's order, and a replay of the same events gives the same ask.

    open --Replied--> open | closed(ok)      every collaborator answered, or quorum at the deadline
    open --Failed---> open | closed(failed)  too few are left for the quorum
    open --Elapsed--> open | closed          the deadline has passed
    closed stays closed: what comes later is late, a repetition of what was accepted a duplicate
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Replied:
    """A collaborator's reply has arrived whole and passed every check."""

    collaborator: str
    digest: str


@dataclass(frozen=True)
class Failed:
    """A collaborator has no acceptable reply to this ask."""

    collaborator: str
    code: str


@dataclass(frozen=True)
class Elapsed:
    """The ask has been open for so long, all lives of the aggregator added up."""

    seconds: float


Event = Replied | Failed | Elapsed


@dataclass(frozen=True)
class Accept:
    collaborator: str
    digest: str


@dataclass(frozen=True)
class Exclude:
    """This collaborator's part of the ask is over without a reply."""

    collaborator: str
    code: str


@dataclass(frozen=True)
class Duplicate:
    collaborator: str


@dataclass(frozen=True)
class Late:
    collaborator: str


@dataclass(frozen=True)
class Refuse:
    """Not counted; `code` is an error code."""

    collaborator: str
    code: str


@dataclass(frozen=True)
class Close:
    """The ask is over. `accepted`: names, sorted; `met`: whether they are a quorum."""

    accepted: tuple[str, ...]
    met: bool


Effect = Accept | Exclude | Duplicate | Late | Refuse | Close


@dataclass(frozen=True)
class Ask:
    """One question to a cohort. `quorum` counts the sites asked."""

    id: str
    cohort: tuple[str, ...]
    quorum: int
    deadline_s: float | None = None
    accepted: Mapping[str, str] = field(default_factory=lambda: _NONE)  # name -> digest
    failed: Mapping[str, str] = field(default_factory=lambda: _NONE)  # name -> error code
    elapsed_s: float = 0.0
    closed: Close | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.quorum <= len(self.cohort) == len(set(self.cohort))

    def awaits(self, name: str) -> bool:
        """Whether this collaborator's answer still counts."""
        answered = name in self.accepted or name in self.failed
        return not self.closed and not answered and name in self.cohort

    @property
    def missing(self) -> tuple[str, ...]:
        """Who has neither answered nor failed."""
        return tuple(n for n in self.cohort if n not in self.accepted and n not in self.failed)


def step(ask: Ask, event: Event) -> tuple[Ask, tuple[Effect, ...]]:
    """What the event changes, and what the shell must do about it, in order."""
    match event:
        case Replied(name, digest):
            return _replied(ask, name, digest)
        case Failed(name, code):
            return _failed(ask, name, code)
        case Elapsed(seconds):
            return _settle(replace(ask, elapsed_s=max(seconds, ask.elapsed_s)), ())


def _replied(ask: Ask, name: str, digest: str) -> tuple[Ask, tuple[Effect, ...]]:
    if name not in ask.cohort:
        return ask, (Refuse(name, "R07"),)
    if name in ask.accepted:
        same = ask.accepted[name] == digest
        return ask, (Duplicate(name) if same else Refuse(name, "R08"),)
    if ask.closed:
        return ask, (Late(name),)
    if name in ask.failed:
        return ask, (Refuse(name, "R09"),)
    accepted = MappingProxyType({**ask.accepted, name: digest})
    return _settle(replace(ask, accepted=accepted), (Accept(name, digest),))


def _failed(ask: Ask, name: str, code: str) -> tuple[Ask, tuple[Effect, ...]]:
    if name not in ask.cohort:
        return ask, (Refuse(name, "R07"),)
    if name in ask.accepted or name in ask.failed:
        return ask, (Duplicate(name),)
    if ask.closed:
        return ask, (Late(name),)
    failed = MappingProxyType({**ask.failed, name: code})
    return _settle(replace(ask, failed=failed), (Exclude(name, code),))


def _settle(ask: Ask, effects: tuple[Effect, ...]) -> tuple[Ask, tuple[Effect, ...]]:
    if ask.closed:
        return ask, effects
    reachable = len(ask.cohort) - len(ask.failed) >= ask.quorum
    overdue = ask.deadline_s is not None and ask.elapsed_s >= ask.deadline_s
    answered = len(ask.accepted) + len(ask.failed)
    if answered < len(ask.cohort) and reachable and not overdue:
        return ask, effects
    close = Close(tuple(sorted(ask.accepted)), len(ask.accepted) >= ask.quorum)
    return replace(ask, closed=close), (*effects, close)
