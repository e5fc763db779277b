"""The life of one ask, as a pure function.

Rule: everything that decides whether a reply counts, and whether an ask is over, is in this file.
The shell around it makes the effects durable, then adopts the new state, then answers. So the
order of events is the journal's order, and a replay of the same events gives the same ask.

    open --Replied--> open | closed(ok)      as many as are wanted have answered, or everybody has
    open --Failed---> open | closed(failed)  too few are left for the quorum
    open --Elapsed--> open | closed          the deadline has passed, or the grace after a quorum
                    | waiting                too few at the deadline, and some of them are gone
    waiting --Returned--> open               enough of them are back: a new deadline begins
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
    """The ask has been open for so long, all lives of the aggregator added up. `gone`: who has
    not been heard of in this time."""

    seconds: float
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Returned:
    """Enough collaborators for a quorum are here again."""


Event = Replied | Failed | Elapsed | Returned


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
class Keep:
    """Too late for this ask, and kept for the next round."""

    collaborator: str
    digest: str


@dataclass(frozen=True)
class Wait:
    """There is no quorum, and some who are missing are gone: wait for them."""

    gone: tuple[str, ...]


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


Effect = Accept | Exclude | Duplicate | Late | Keep | Refuse | Wait | Close


@dataclass(frozen=True)
class Ask:
    """One question to a cohort.

    `quorum` counts the sites asked; `wanted` answers are enough, 0: everybody's; `grace_s` begins
    when the quorum is there. All times are measured in steps of `Elapsed`.
    """

    id: str
    cohort: tuple[str, ...]
    quorum: int
    deadline_s: float | None = None
    wanted: int = 0
    grace_s: float | None = None
    keeps_late: bool = False
    accepted: Mapping[str, str] = field(default_factory=lambda: _NONE)  # name -> digest
    failed: Mapping[str, str] = field(default_factory=lambda: _NONE)  # name -> error code
    kept: Mapping[str, str] = field(default_factory=lambda: _NONE)  # name -> digest, too late
    elapsed_s: float = 0.0
    met_s: float | None = None  # when the quorum was first seen
    waiting: bool = False
    closed: Close | None = None

    def __post_init__(self) -> None:
        assert 1 <= self.quorum <= len(self.cohort) == len(set(self.cohort))
        assert not self.wanted or self.quorum <= self.wanted <= len(self.cohort)

    def awaits(self, name: str) -> bool:
        """Whether this collaborator's answer still counts for this ask."""
        return not self.closed and self._lacks(name)

    def takes(self, name: str) -> bool:
        """Whether this collaborator's answer still counts for anything."""
        open = not self.closed or (self.closed.met and self.keeps_late)
        return open and self._lacks(name)

    @property
    def missing(self) -> tuple[str, ...]:
        """Who has neither answered nor failed."""
        return tuple(name for name in self.cohort if not self.answered(name))

    def answered(self, name: str) -> bool:
        """Whether this collaborator has answered, or failed."""
        return name in self.accepted or name in self.failed or name in self.kept

    def _lacks(self, name: str) -> bool:
        return not self.answered(name) and name in self.cohort


def step(ask: Ask, event: Event) -> tuple[Ask, tuple[Effect, ...]]:
    """What the event changes, and what the shell must do about it, in order."""
    match event:
        case Replied(name, digest):
            return _replied(ask, name, digest)
        case Failed(name, code):
            return _failed(ask, name, code)
        case Elapsed(seconds, gone):
            return _elapsed(ask, seconds, gone)
        case Returned():
            return replace(ask, waiting=False), ()


def _replied(ask: Ask, name: str, digest: str) -> tuple[Ask, tuple[Effect, ...]]:
    if name not in ask.cohort:
        return ask, (Refuse(name, "R07"),)
    known = ask.accepted.get(name) or ask.kept.get(name)
    if known:
        return ask, (Duplicate(name) if known == digest else Refuse(name, "R08"),)
    if name in ask.failed and not ask.closed:
        return ask, (Refuse(name, "R09"),)
    if not ask.takes(name):
        return ask, (Late(name),)
    if ask.closed:
        kept = MappingProxyType({**ask.kept, name: digest})
        return replace(ask, kept=kept), (Keep(name, digest),)
    accepted = MappingProxyType({**ask.accepted, name: digest})
    return _settle(replace(ask, accepted=accepted), (Accept(name, digest),))


def _failed(ask: Ask, name: str, code: str) -> tuple[Ask, tuple[Effect, ...]]:
    if name not in ask.cohort:
        return ask, (Refuse(name, "R07"),)
    if ask.answered(name):
        return ask, (Duplicate(name),)
    if ask.closed:
        return ask, (Late(name),)
    failed = MappingProxyType({**ask.failed, name: code})
    return _settle(replace(ask, failed=failed), (Exclude(name, code),))


def _elapsed(ask: Ask, seconds: float, gone: frozenset[str]) -> tuple[Ask, tuple[Effect, ...]]:
    if ask.closed or ask.waiting:
        return ask, ()
    ask = replace(ask, elapsed_s=max(seconds, ask.elapsed_s))
    there = len(ask.accepted) >= ask.quorum
    if there and ask.met_s is None:
        ask = replace(ask, met_s=ask.elapsed_s)
    lost = tuple(name for name in ask.missing if name in gone)
    if _overdue(ask) and not there and lost:
        return replace(ask, waiting=True, elapsed_s=0.0), (Wait(lost),)
    return _settle(ask, ())


def _overdue(ask: Ask) -> bool:
    late = ask.deadline_s is not None and ask.elapsed_s >= ask.deadline_s
    grace, since = ask.grace_s, ask.met_s
    return late or (grace is not None and since is not None and ask.elapsed_s - since >= grace)


def _settle(ask: Ask, effects: tuple[Effect, ...]) -> tuple[Ask, tuple[Effect, ...]]:
    if ask.closed:
        return ask, effects
    reachable = len(ask.cohort) - len(ask.failed) >= ask.quorum
    met = len(ask.accepted) >= ask.quorum
    enough = bool(ask.wanted) and len(ask.accepted) >= ask.wanted
    over = enough or not ask.missing or not reachable or _overdue(ask) or (ask.waiting and met)
    if not over:
        return ask, effects
    close = Close(tuple(sorted(ask.accepted)), met)
    return replace(ask, closed=close, waiting=False), (*effects, close)
