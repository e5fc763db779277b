"""What a run looks like so far: a frozen value, folded from the run's events.

    view = View()
    for event in events:
        view = fold(view, event)

Pure: the console, `fx status` and tests read the same view. Folding an event twice changes
nothing, since a restarted aggregator may say again what it said before.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from openfed.parse import AGGREGATE
from openfed.tasks.base import SENDS

Event = Mapping[str, Any]
"""`{"event": kind, "at": seconds since the epoch, ...fields of the kind}`."""

Observe = Callable[[Event], None]
"""Is told every event of a run, in order."""

Direction = Literal["up", "down"]
"""Up: from a collaborator to the aggregator."""

NOTHING: Mapping[Any, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Moved:
    """Finished transfers, added up."""

    bytes: int = 0  # coded, as they travelled
    raw: int = 0  # of the same records uncoded
    seconds: float = 0.0  # of each transfer; those of several sites overlap

    def __add__(self, other: "Moved") -> "Moved":
        return Moved(self.bytes + other.bytes, self.raw + other.raw, self.seconds + other.seconds)

    @property
    def ratio(self) -> float:
        """How many times smaller coding made what travelled; 1 where nothing did."""
        return self.raw / self.bytes if self.bytes else 1.0

    @property
    def rate(self) -> float:
        """Coded bytes per second of one transfer, on average; 0 where nothing travelled."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0


def moved_by(transfer: Event) -> Moved:
    return Moved(int(transfer["bytes"]), int(transfer["raw"]), float(transfer["seconds"]))


Which = tuple[str, str, str, str, str]
"""One transfer of a round: direction, collaborator, task, ask, payload."""


@dataclass(frozen=True)
class Site:
    """One collaborator, as the aggregator last heard of it."""

    state: str = "waiting"
    joined: bool = False
    isolation: str = ""  # what holds its task process, as it says
    n: int = 0  # samples that its last training consumed
    seconds: float = 0.0  # of its last task
    up: Moved = Moved()  # in all rounds
    down: Moved = Moved()

    @property
    def shown(self) -> str:
        """What people see: whoever never came has no part in what is asked of it."""
        return self.state if self.joined else "not connected"


@dataclass(frozen=True)
class Row:
    """Model k: what training in round k cost, and how the result scores. Model 0 is the start."""

    model: int
    scores: Mapping[str, float] = field(default_factory=lambda: NOTHING)  # aggregated `validate`
    decoded: Mapping[str, float] = field(default_factory=lambda: NOTHING)  # of a lossy downlink
    others: Mapping[str, float] = field(default_factory=lambda: NOTHING)  # "train/loss", ...
    n: Mapping[str, int] = field(default_factory=lambda: NOTHING)  # samples, per collaborator
    seconds: float = 0.0
    moved: Mapping[Which, Moved] = field(default_factory=lambda: NOTHING)
    missing: tuple[str, ...] = ()

    def total(self, way: Direction, collaborator: str | None = None) -> Moved:
        """What the round moved that way, for everyone or one collaborator."""
        found = (
            moved
            for (direction, name, *_), moved in self.moved.items()
            if direction == way and collaborator in (None, name)
        )
        return sum(found, Moved())


@dataclass(frozen=True)
class View:
    name: str = ""
    run: str = ""
    plan_digest: str = ""
    rounds: int = 0
    round: int = 0
    trained: int = 0  # the last round in which training began
    validated: bool = False  # sites were asked for scores
    phase: str = "starting"
    command: str = ""  # that resumes the run
    sites: Mapping[str, Site] = field(default_factory=lambda: NOTHING)
    rows: Mapping[int, Row] = field(default_factory=lambda: NOTHING)  # by model
    best: Event | None = None
    ended: Event | None = None  # the fields of run.ended
    handshakes: Mapping[tuple[float, str], int] = field(default_factory=lambda: NOTHING)  # failed
    partial: bool = False  # earlier lives of the run are not in it
    open: bool = False  # the plan names no sites: others may come

    def total(self, way: Direction) -> Moved:
        """What the run moved that way, also in the validation after its last round."""
        return sum((getattr(site, way) for site in self.sites.values()), Moved())

    @property
    def failed_handshakes(self) -> Mapping[str, int]:
        """By cause, in all lives of the aggregator; the most frequent first."""
        counts: dict[str, int] = {}
        for (_, cause), count in self.handshakes.items():
            counts[cause] = counts.get(cause, 0) + count
        return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def fold(view: View, event: Event) -> View:
    """The view after `event`; an event of an unknown kind changes nothing."""
    step = STEPS.get(event.get("event", ""))
    return step(view, event) if step else view


def unscored(view: View) -> bool:
    """Whether a run was to be validated and completed without a single score."""
    completed = view.ended is not None and view.ended["status"] == "completed"
    return completed and view.validated and not any(row.scores for row in view.rows.values())


def fold_all(events: Iterable[Event]) -> View:
    view = View()
    for event in events:
        view = fold(view, event)
    return view


def _started(view: View, event: Event) -> View:
    same = event["run"] == view.run
    early = NOTHING if view.run else view.handshakes  # before anybody could be told of the run
    fresh = replace(view, ended=None) if same else View(command=view.command, handshakes=early)
    names = [*fresh.sites, *event["collaborators"]]  # those of before, where none are named
    known = {name: fresh.sites.get(name, Site()) for name in names}
    sites = {name: Site(up=site.up, down=site.down) for name, site in known.items()}
    return replace(
        fresh,
        name=event["name"],
        run=event["run"],
        plan_digest=event["plan_digest"],
        rounds=event["rounds"],
        phase="waiting for collaborators",
        sites=sites,
        open=not event["collaborators"],
        partial=fresh.partial if same else bool(event.get("resumed")),
    )


def _launched(view: View, event: Event) -> View:
    return replace(view, command=event["command"])


def _joined(view: View, event: Event) -> View:
    name = event["collaborator"]
    asked = view.sites.get(name, Site()).state != Site.state  # before it was here
    return _site(view, name, joined=True, **({} if asked else {"state": "joined"}))


def _described(view: View, event: Event) -> View:
    return _site(view, event["collaborator"], isolation=str(event["isolation"]))


def _handshake(view: View, event: Event) -> View:
    """The count of one cause `since` the aggregator's process began to listen."""
    which, count = (float(event["since"]), str(event["cause"])), int(event["count"])
    known = view.handshakes.get(which, 0)
    return replace(view, handshakes={**view.handshakes, which: max(known, count)})


def _round(view: View, event: Event) -> View:
    return replace(view, round=event["round"], phase="round started")


def _opened(view: View, event: Event) -> View:
    for name in event["cohort"]:
        view = _site(view, name, state=event["task"])
    trained = event["round"] if event["task"] in SENDS else view.trained
    validated = view.validated or event["task"] == "validate"
    view = replace(view, round=event["round"], phase=event["task"], trained=trained)
    return replace(view, validated=validated)


def _replied(view: View, event: Event) -> View:
    name, task, n = event["collaborator"], event["task"], int(event.get("n") or 0)
    accepted = event["ruling"] in ("accepted", "duplicate")
    state = "done" if accepted else str(event["ruling"])
    view = _site(view, name, state=f"{task}: {state}", seconds=float(event.get("seconds") or 0))
    if task not in SENDS or not accepted:
        return view
    view = _site(view, name, n=n)
    row = _row(view, event["round"])
    return _put(view, replace(row, n={**row.n, name: n}))


def _failed(view: View, event: Event) -> View:
    return _site(view, event["collaborator"], state=f"{event['task']}: failed {event['code']}")


def _waiting(view: View, event: Event) -> View:
    for name in event["gone"]:
        view = _site(view, name, state=f"{event['task']}: gone")
    return replace(view, phase=f"{event['task']}, waiting for {', '.join(event['gone'])}")


def _resumed(view: View, event: Event) -> View:
    for name, site in view.sites.items():
        if site.state == f"{event['task']}: gone":
            view = _site(view, name, state=event["task"])
    return replace(view, phase=event["task"])


def _closed(view: View, event: Event) -> View:
    missing = tuple(event.get("missing", ()))
    for name in missing:
        if view.sites.get(name, Site()).state == event["task"]:  # no answer, not even a failure
            view = _site(view, name, state=f"{event['task']}: missing")
    if event["task"] not in SENDS:
        return view
    return _put(view, replace(_row(view, event["round"]), missing=missing))


def _metric(view: View, event: Event) -> View:
    if event["collaborator"] != AGGREGATE or event["value"] is None:
        return view
    if event["task"] in ("validate", "validate_decoded"):
        return _scored(view, event)
    row = _row(view, event["round"])
    name = f"{event['task']}/{event['metric']}"
    return _put(view, replace(row, others={**row.others, name: event["value"]}))


def _scored(view: View, event: Event) -> View:
    """A score of model k as it is comes before one of what the sites decoded of it; where both are
    known, the other stands beside."""
    row, name, value = _row(view, event["model"]), event["metric"], event["value"]
    if event["task"] == "validate":
        others = {f"decoded/{name}": row.decoded[name]} if name in row.decoded else {}
        row = replace(row, scores={**row.scores, name: value}, others={**row.others, **others})
    else:
        decoded = {**row.decoded, name: value}
        row = replace(row, scores={name: value, **row.scores}, decoded=decoded)
    return _put(view, row)


def _transfer(view: View, event: Event) -> View:
    """The first word on a transfer counts: a restart may tell it again, with nothing to move."""
    way, name = event["direction"], event["collaborator"]
    which = (way, name, event["task"], event.get("ask", ""), event.get("payload", ""))
    row = _row(view, event["round"])
    if way not in ("up", "down") or which in row.moved:
        return view
    moved = moved_by(event)
    site = view.sites.get(name, Site())
    view = _site(view, name, **{way: getattr(site, way) + moved})
    return _put(view, replace(row, moved={**row.moved, which: moved}))


def _round_ended(view: View, event: Event) -> View:
    row = replace(_row(view, event["round"]), seconds=event["seconds"])
    return replace(_put(view, row), phase="round ended")


def _best(view: View, event: Event) -> View:
    return replace(view, best={key: event[key] for key in ("model", "metric", "value")})


def _ended(view: View, event: Event) -> View:
    return replace(view, phase=event["status"], ended=event)


STEPS = {
    "launched": _launched,
    "run.started": _started,
    "node.joined": _joined,
    "node.described": _described,
    "handshake.failed": _handshake,
    "round.started": _round,
    "ask.opened": _opened,
    "reply": _replied,
    "task.failed": _failed,
    "ask.waiting": _waiting,
    "ask.resumed": _resumed,
    "ask.closed": _closed,
    "metric": _metric,
    "transfer": _transfer,
    "round.ended": _round_ended,
    "model.best": _best,
    "run.ended": _ended,
}


def _site(view: View, name: str, **changes: Any) -> View:
    site = replace(view.sites.get(name, Site()), **changes)
    return replace(view, sites={**view.sites, name: site})


def _row(view: View, model: int) -> Row:
    return view.rows.get(model, Row(model))


def _put(view: View, row: Row) -> View:
    return replace(view, rows={**view.rows, row.model: row})


def finished(view: View, event: Event) -> tuple[int, ...]:
    """The models of which nothing more will be said after `event`, which `view` holds already.

    Model k is trained in round k and scored at the start of round k+1, or at the end of the run.
    """
    if event.get("event") == "run.ended":
        return tuple(sorted(model for model in view.rows if model >= view.trained))
    if event.get("event") == "ask.opened" and event["task"] in SENDS:
        return (event["round"] - 1,) if event["round"] - 1 in view.rows else ()
    return ()
