"""One function over numpy arrays as a task runner.

    def train(record, data, settings) -> (record, n, metrics)
    def validate(record, data, settings) -> (n, metrics)          # may be absent
    def init(settings) -> record                                  # or `shapes`: zeros of float64

`record` is a dict of writable arrays, `data` the plan's loader over the site's source, `settings`
the plan's with `round`, `rounds` and `seed` added. A metric is a number, the mean over the `n`
samples, or a sequence of the metric's sums.
"""

from collections.abc import Mapping
from functools import partial
from numbers import Real
from typing import Any, Final

import numpy as np

from openfed.errors import TaskError
from openfed.tasks.base import VALIDATE, Outcome, Task
from openfed.tasks.checks import check_scope
from openfed.tasks.config import Config
from openfed.tasks.metrics import metric_name
from openfed.tasks.replies import reported, reseed, split, with_tuned
from openfed.tasks.runners import kind_of, load
from openfed.tensors.record import Signature, signature_of
from openfed.typing import Array, Numbers, Tensors

TRAINED: Final[Mapping[str, type]] = {"record": Mapping, "n": Real, "metrics": Mapping}
VALIDATED: Final[Mapping[str, type]] = {"n": Real, "metrics": Mapping}
"""What the user's functions return, in order."""


class NumpyRunner:
    """Calls the user's functions; see `Runner`."""

    def __init__(self, config: Config, data: Any) -> None:
        settings = config.runner.settings
        self._names: Mapping[str, str] = settings
        self._train = load(settings["train"])
        self._validate = load(settings["validate"]) if settings["validate"] else None
        self._init = load(settings["init"]) if settings["init"] else None
        self._shapes: Mapping[str, Any] = settings["shapes"] or {}
        self._settings = dict(settings["settings"])
        self._metrics = tuple(metric_name(name) for name in config.metrics)
        self._seed, self._scope, self._data = config.seed, config.scope, data
        self._own: Tensors | None = None
        if not self._init and not self._shapes:
            raise TaskError("K08", "the numpy runner needs `shapes` or `init` for its first model")

    def initial(self, seed: int) -> tuple[Tensors, Signature]:
        first = self._first(seed)
        check_scope(first, self._scope)
        shared, _ = split(first, self._scope)
        return shared, signature_of(shared)

    def run(self, task: Task, model: Tensors, local: Tensors) -> Outcome:
        given = {**self._first_local(), **local, **model}
        record = {name: np.array(value) for name, value in given.items()}
        settings = {**self._settings, **task.settings}
        settings |= {"round": task.round, "rounds": task.rounds, "seed": task.seed}
        reseed(task.seed)
        if task.name == VALIDATE:
            return Outcome(self._validated(record, settings, VALIDATE))
        returned = self._train(record, self._data, settings)
        trained, n, metrics = _parts(self._names["train"], returned, TRAINED)
        if not n >= 1:
            raise TaskError("K04", f"training returned n = {n}, expected at least 1 sample")
        numbers = {"n": (float(n),), **reported(task.name, metrics, self._metrics, n)}
        arrays = {name: np.asarray(value) for name, value in trained.items()}
        validate = partial(self._validated, dict(arrays), settings)
        shared, kept = split(arrays, self._scope)
        return Outcome(with_tuned(task, numbers, validate), shared, kept or None)

    def _validated(
        self, record: dict[str, Array], settings: Mapping[str, Any], task: str
    ) -> Numbers:
        if self._validate is None:
            return {"n": (0.0,)}
        name, returned = self._names["validate"], self._validate(record, self._data, settings)
        n, metrics = _parts(name, returned, VALIDATED)
        if not n:
            return {"n": (0.0,)}
        for missing in sorted(set(self._metrics) - set(metrics)):
            told = f"the plan's `metrics` asks for {missing}, which {name} did not return"
            raise TaskError("K13", f"{told}: return it among its metrics, or remove it there")
        return {"n": (float(n),), **reported(task, metrics, self._metrics, n)}

    def _first_local(self) -> Tensors:
        """The site's own entries as they begin; made once, since `init` may take its time."""
        if self._own is None:
            _, self._own = split(self._first(self._seed), self._scope)
        return self._own

    def _first(self, seed: int) -> dict[str, Array]:
        reseed(seed)
        zeros = {name: np.zeros(tuple(shape)) for name, shape in self._shapes.items()}
        made = self._init({**self._settings, "seed": seed}) if self._init else {}
        if not isinstance(made, Mapping):
            told = f"{self._names['init']} returned {kind_of(made)}, expected record: a dict"
            raise TaskError("K12", f"{told} of arrays")
        return {**zeros, **{name: np.array(value) for name, value in made.items()}}


def _parts(name: str, returned: Any, expected: Mapping[str, type]) -> tuple[Any, ...]:
    """What `name` returned, part by part. Raises: TaskError: K12 other parts than `expected`."""
    parts = tuple(returned) if isinstance(returned, tuple | list) else ()
    kinds = tuple(expected.values())
    if len(parts) != len(kinds) or not all(map(isinstance, parts, kinds)):
        found = kind_of(parts or returned)
        raise TaskError("K12", f"{name} returned {found}, expected ({', '.join(expected)})")
    return parts
