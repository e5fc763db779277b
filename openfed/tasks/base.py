"""The contract between openfed and training code. Nothing here knows a framework."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from openfed.tensors.record import Signature
from openfed.typing import Json, Numbers, Tensors

TRAIN, VALIDATE, LIFT = "train", "validate", "lift"

SENDS = frozenset({TRAIN, LIFT})
"""Tasks that answer tensors: an update of the model, or sums over the site's rows."""


@dataclass(frozen=True)
class Task:
    """One piece of work. `seed` derives from (plan seed, round, collaborator, task)."""

    name: str  # TRAIN, VALIDATE or LIFT
    round: int  # 1-based
    rounds: int
    collaborator: str
    seed: int
    settings: Mapping[str, Json] = field(default_factory=dict)  # e.g. {"epochs": 2, "tuned": True}


@dataclass(frozen=True)
class Outcome:
    """What a task answers.

    `tensors`: after training, the trained global entries (not a difference), frozen ones absent;
    after validation, none; after lifting, the sums. `local`: the site's own entries after the task
    (personal layers, optimiser state kept at the site); None leaves them as they were. `numbers`:
    `n` (samples consumed), `metrics/<task>/<metric>` (the metric's sums), and others for people.
    """

    numbers: Numbers
    tensors: Tensors = field(default_factory=dict)
    local: Tensors | None = None


class Runner(Protocol):
    """Pure at the seam, mutable inside: the same (task, model, local) gives the same outcome.

    Built once per task process, from the plan's settings and the site's source; keeps nothing
    between tasks but what it was given.
    """

    def initial(self, seed: int) -> tuple[Tensors, Signature]:
        """The initial global entries (frozen ones included) and their signature, without data."""
        ...

    def run(self, task: Task, model: Tensors, local: Tensors) -> Outcome:
        """Run one task on `model` (all global entries) and `local` (empty at first)."""
        ...
