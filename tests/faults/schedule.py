"""What will be done to a federation, and when: a pure function of a seed.

Two hands play at the same time: one does things to nodes, the other to the lines between them.
Each does one thing after the other; what both do depends on the seed and the run's number alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

SITES = ("farm", "mill", "pond")
AGENTS = tuple(f"agent {name}" for name in SITES)
TASKS = tuple(f"task {name}" for name in SITES)
STARTERS = tuple(f"site {name}" for name in SITES)  # `fx collaborator start` itself
FOLDERS = ("aggregator", *SITES)


@dataclass(frozen=True)
class Kind:
    """`seconds`: how long it lasts; `amount`: how much of it, in `unit`; both are drawn from these
    ranges. `root`: what it takes cannot be had without."""

    about: str
    targets: tuple[str, ...]
    seconds: tuple[float, float] = (0.0, 0.0)
    amount: tuple[float, float] = (0.0, 0.0)
    unit: str = ""
    root: bool = False
    weight: int = 1  # how often, among the others of its hand


NODES: Mapping[str, Kind] = {
    "kill": Kind("SIGKILL", ("aggregator", *AGENTS, *TASKS, *STARTERS), weight=3),
    "stop": Kind("SIGSTOP, then SIGCONT", ("aggregator", *AGENTS, *TASKS, *STARTERS), (0.5, 8.0)),
    "duplicate": Kind("reports sent once more, with the site's key", SITES, amount=(2, 4)),
    "clock": Kind("the wall clock steps, and steps back", FOLDERS, (1.0, 6.0), (-300, 20000), "s"),
    "memory": Kind("no more address space", ("aggregator", *AGENTS), (1.0, 4.0), (0, 32), "MiB"),
    "disk-full": Kind("its file system is full", FOLDERS, (1.0, 5.0), root=True),
    "read-only": Kind("killed; its file system is read-only", FOLDERS, (1.0, 4.0), root=True),
}
LINES: Mapping[str, Kind] = {
    "reset": Kind("TCP reset after so many bytes", SITES, amount=(0, 300_000), unit="bytes"),
    "stall-up": Kind("nothing is passed on to the aggregator", SITES, (0.5, 8.0)),
    "stall-down": Kind("nothing is passed on to the site", SITES, (0.5, 8.0)),
    "latency": Kind("each way", SITES, (2.0, 8.0), (300, 300), "ms"),
    "lose-up": Kind("packets to the aggregator are dropped", SITES, (0.5, 6.0), root=True),
    "lose-down": Kind("packets to the site are dropped", SITES, (0.5, 6.0), root=True),
    "loss": Kind("packets lost, both ways", SITES, (2.0, 10.0), (10, 28), "%", root=True),
    "rate": Kind("bandwidth, both ways", SITES, (2.0, 10.0), (4, 4), "Mbit/s", root=True),
}
KINDS: Mapping[str, Kind] = {**NODES, **LINES}


@dataclass(frozen=True)
class Fault:
    """`at_s`: since every node of the run was there."""

    at_s: float
    kind: str
    target: str
    seconds: float
    amount: float

    def __str__(self) -> str:
        much = f"{self.amount:.0f} {KINDS[self.kind].unit}" if any(KINDS[self.kind].amount) else ""
        lasting = f"for {self.seconds:.1f} s" if self.seconds else ""
        words = f"{self.at_s:6.2f} s  {self.kind:10} {self.target:12} {lasting:10} {much}"
        return words.rstrip()


Schedule = tuple[tuple[Fault, ...], tuple[Fault, ...]]
"""What each hand does, in the order of time."""


def schedule(seed: int, run: int, kinds: Sequence[str], seconds: float) -> Schedule:
    """The faults of these kinds in the first `seconds` of a run."""
    hands = (tuple(name for name in hand if name in kinds) for hand in (NODES, LINES))
    nodes, lines = (tuple(_hand(Random(f"{seed}/{run}/{h}"), h, seconds)) for h in hands)
    return nodes, lines


def _hand(draw: Random, kinds: Sequence[str], seconds: float) -> Iterator[Fault]:
    at = draw.uniform(0.0, 1.0)
    while kinds and at < seconds:
        (name,) = draw.choices(kinds, [KINDS[each].weight for each in kinds])
        kind = KINDS[name]
        lasts, amount = draw.uniform(*kind.seconds), draw.uniform(*kind.amount)
        yield Fault(round(at, 2), name, draw.choice(kind.targets), round(lasts, 2), round(amount))
        at += lasts + draw.uniform(0.1, 1.5)
