"""One function over numpy arrays as a task runner.

    def train(record, data, settings) -> (record, n, metrics)
    def validate(record, data, settings) -> (n, metrics)          # may be absent
    def init(settings) -> record                                  # or `shapes`: zeros of float64

`record` is a dict of writable arrays, `data` the plan's loader over the site's source, `settings`
the plan's with `round`, `rounds` and `seed` added. A metric is a number, the mean over the `n`
samples, or a sequence of the metric's sums.
"""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from openfed.errors import TaskError
from openfed.tasks.base import VALIDATE, Outcome, Task
from openfed.tasks.checks import reported
from openfed.tasks.config import Config
from openfed.tasks.metrics import metric_name
from openfed.tasks.runners import load
from openfed.tensors.record import Signature, is_local, signature_of
from openfed.typing import Array, Numbers, Tensors


class NumpyRunner:
    """Calls the user's functions; see `Runner`."""

    def __init__(self, config: Config, data: Any) -> None:
        settings = config.runner.settings
        self._train = load(settings["train"])
        self._validate = load(settings["validate"]) if settings.get("validate") else None
        self._init = load(settings["init"]) if settings.get("init") else None
        self._shapes: Mapping[str, Any] = settings.get("shapes") or {}
        self._settings = dict(settings.get("settings") or {})
        self._metrics = tuple(metric_name(name) for name in config.metrics)
        self._seed, self._scope, self._data = config.seed, config.scope, data
        if not self._init and not self._shapes:
            raise TaskError("K08", "the numpy runner needs `shapes` or `init` for its first model")

    def initial(self, seed: int) -> tuple[Tensors, Signature]:
        record = self._first(seed)
        shared = {k: v for k, v in record.items() if not is_local(k, self._scope)}
        return shared, signature_of(shared)

    def run(self, task: Task, model: Tensors, local: Tensors) -> Outcome:
        given = {**self._first(self._seed), **local, **model}
        record = {name: np.array(value) for name, value in given.items()}
        settings = {**self._settings, **task.settings}
        settings |= {"round": task.round, "rounds": task.rounds, "seed": task.seed}
        _reseed(task.seed)
        if task.name == VALIDATE:
            return Outcome(self._validated(VALIDATE, record, settings))
        trained, n, metrics = self._train(record, self._data, settings)
        if int(n) <= 0:
            raise TaskError("K04", f"training returned n = {n}, expected at least 1 sample")
        numbers = {"n": (float(n),), **reported(task.name, metrics, self._metrics, int(n))}
        arrays = {name: np.asarray(value) for name, value in trained.items()}
        if task.settings.get("tuned"):
            tuned = self._validated("validate_tuned", dict(arrays), settings)
            numbers |= {name: value for name, value in tuned.items() if name != "n"}
        kept = {name: value for name, value in arrays.items() if is_local(name, self._scope)}
        shared = {name: value for name, value in arrays.items() if name not in kept}
        return Outcome(numbers, shared, kept or None)

    def _validated(
        self, task: str, record: dict[str, Array], settings: Mapping[str, Any]
    ) -> Numbers:
        if self._validate is None:
            return {"n": (0.0,)}
        n, metrics = self._validate(record, self._data, settings)
        return {"n": (float(n),), **reported(task, metrics if n else {}, self._metrics, int(n))}

    def _first(self, seed: int) -> dict[str, Array]:
        _reseed(seed)
        zeros = {name: np.zeros(tuple(shape)) for name, shape in self._shapes.items()}
        made = self._init({**self._settings, "seed": seed}) if self._init else {}
        return {**zeros, **{name: np.array(value) for name, value in made.items()}}


def _reseed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
